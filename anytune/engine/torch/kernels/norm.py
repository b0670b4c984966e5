"""RMSNorm with the residual sum before it and the low-rank product behind it in one pass;
the backward is in norm_backward.py.

Two shapes of program. `_rows` holds whole rows in registers: each byte moves once; for the low-rank product every
program reads 16 rows of the factor, which is right for few tokens. `_blocks` walks over the columns of many rows twice
(the second time out of L2) and reads the factor once for all of them: right for many tokens.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .entry import Entry
from .low import MOST, warps
from .low import low as skinny
from .norm_backward import rms_norm_backward  # noqa: F401
from .overlap import overlap, settle
from .shares import ceil_power, finish, fit

SMALL = 512  # tokens up to which the low-rank product is done row by row
WHOLE = 8192  # bytes of a row, up to which this is possible
FEW = dict(PROGRAMS=132, ROWS=4, WARPS=8)  # fewer rows for each, while there are not more programs than this
MANY = dict(ROWS=32, BLOCK=128, WARPS=4, STAGES=3)


@Entry
@triton.jit(do_not_specialize=["tokens"])
def _rows(
    x,
    add,
    total,
    gain,
    out,
    a,
    low,
    keep,
    tokens,
    n,
    rank,
    eps,
    x_row,
    add_row,
    total_row,
    out_row,
    a_row,
    low_row,
    keep_row,
    ROWS: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK: tl.constexpr,
    RANKS: tl.constexpr,
    ADD: tl.constexpr,
    LOW: tl.constexpr,
    KEEP: tl.constexpr,
    OVERLAP: tl.constexpr = False,
):
    """Grid (row blocks, blocks of the rank). Rows are [SPLIT, ROWS, BLOCK],
    so that each warp multiplies a piece of them."""
    settle(OVERLAP)
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[None, :, None]
    column = (tl.arange(0, SPLIT) * BLOCK)[:, None, None] + tl.arange(0, BLOCK)[None, None, :]
    inside, mask = column < n, (row < tokens) & (column < n)
    at = row.to(tl.int64)
    first = tl.program_id(1) == 0
    j = tl.program_id(1) * RANKS + tl.arange(0, RANKS)
    if LOW:  # depends on nothing, so it is on its way first
        factor = tl.load(
            a + j.to(tl.int64)[None, :, None] * a_row + column, mask=(j < rank)[None, :, None] & inside, other=0
        )
    s = tl.load(x + at * x_row + column, mask=mask, other=0).to(tl.float32)
    if ADD:
        s += tl.load(add + at * add_row + column, mask=mask, other=0).to(tl.float32)
        rounded = s.to(total.dtype.element_ty)
        tl.store(total + at * total_row + column, rounded, mask=mask & first)
        s = rounded.to(tl.float32)
    weight = tl.load(gain + column, mask=inside, other=0)
    squares = tl.sum(tl.sum(s * s, 2, keep_dims=True), 0, keep_dims=True)
    y = (s * tl.rsqrt(squares / n + eps) * weight).to(out.dtype.element_ty)
    tl.store(out + at * out_row + column, y, mask=mask & first)
    if LOW:
        product = tl.sum(tl.dot(y, tl.permute(factor.to(y.dtype), (0, 2, 1)), input_precision="tf32x3"), 0)
        row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        place = (row < tokens)[:, None] & (j < rank)[None, :]
        tl.store(low + row.to(tl.int64)[:, None] * low_row + j[None, :], product.to(low.dtype.element_ty), mask=place)
        if KEEP:
            tl.store(
                keep + row.to(tl.int64)[:, None] * keep_row + j[None, :], product.to(keep.dtype.element_ty), mask=place
            )


@Entry
@triton.jit(do_not_specialize=["tokens"])
def _blocks(
    x,
    add,
    total,
    gain,
    out,
    a,
    low,
    keep,
    tokens,
    n,
    rank,
    eps,
    x_row,
    add_row,
    total_row,
    out_row,
    a_row,
    low_row,
    keep_row,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    RANKS: tl.constexpr,
    ADD: tl.constexpr,
    KEEP: tl.constexpr,
):
    """Grid (row blocks)."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside, at = (row < tokens)[:, None], row.to(tl.int64)[:, None]
    squares = tl.zeros([ROWS, BLOCK], tl.float32)
    for start in tl.range(0, n, BLOCK, num_stages=3):
        column = (start + tl.arange(0, BLOCK))[None, :]
        mask = inside & (column < n)
        s = tl.load(x + at * x_row + column, mask=mask, other=0).to(tl.float32)
        if ADD:
            s += tl.load(add + at * add_row + column, mask=mask, other=0).to(tl.float32)
            rounded = s.to(total.dtype.element_ty)
            tl.store(total + at * total_row + column, rounded, mask=mask)
            s = rounded.to(tl.float32)
        squares += s * s
    inverse = tl.rsqrt(tl.sum(squares, 1, keep_dims=True) / n + eps)
    source, source_row = x, x_row
    if ADD:
        tl.debug_barrier()  # what the loop below reads, other threads of this program have written
        source, source_row = total, total_row
    j = tl.arange(0, RANKS)
    product = tl.zeros([ROWS, RANKS], tl.float32)
    for start in range(0, n, BLOCK):
        column = start + tl.arange(0, BLOCK)
        mask = inside & (column < n)[None, :]
        s = tl.load(source + at * source_row + column[None, :], mask=mask, other=0).to(tl.float32)
        weight = tl.load(gain + column, mask=column < n, other=0)[None, :]
        y = (s * inverse * weight).to(out.dtype.element_ty)
        tl.store(out + at * out_row + column[None, :], y, mask=mask)
        factor = tl.load(
            a + j.to(tl.int64)[:, None] * a_row + column[None, :],
            mask=(j < rank)[:, None] & (column < n)[None, :],
            other=0,
        ).to(y.dtype)
        product = tl.dot(y, tl.trans(factor), product, input_precision="tf32x3")
    finish(product, low, low, 0, 0, 1, low, keep, row, tokens, rank, low_row, keep_row, 1, KEEP)


def rms_norm(x, gain, eps, out, add=None, total=None, a=None, low=None, *, keep=None):
    """See plain.rms_norm."""
    if a is not None and a.shape[0] > MOST:
        rms_norm(x, gain, eps, out, add, total)
        skinny(out, a.t(), low, keep=keep)
        return
    (tokens, n), size = x.shape, out.element_size()
    rank, width = 0 if a is None else a.shape[0], max(16, ceil_power(n))
    add_, total_ = (x, x) if add is None else (add, total)
    a_, low_ = (x, x) if a is None else (a, low)
    keep_ = low_ if keep is None else keep
    tensors = (x, add_, total_, gain, out, a_, low_, keep_, tokens, n, rank, eps)
    strides = tuple(t.stride(0) for t in (x, add_, total_, out, a_, low_, keep_))
    # Programs of the same rows share the rank, and each of them reads x: then nobody may write there.
    in_place = rank > 16 and add is not None and total.data_ptr() in (x.data_ptr(), add.data_ptr())
    if not rank:
        _rows[(tokens, 1)](
            *tensors,
            *strides,
            ROWS=1,
            SPLIT=1,
            BLOCK=width,
            RANKS=1,
            ADD=add is not None,
            LOW=False,
            KEEP=False,
            num_warps=4 if width <= 4096 else 8 if width <= 8192 else 16,
            **overlap(x, tokens),
        )
    elif tokens <= SMALL and width * size <= WHOLE and not in_place:
        c, groups, rows = FEW, triton.cdiv(rank, 16), 1
        while rows < c["ROWS"] and triton.cdiv(tokens, rows) * groups > c["PROGRAMS"]:
            rows *= 2
        split = min(c["WARPS"], width // 16)
        _rows[(triton.cdiv(tokens, rows), groups)](
            *tensors,
            *strides,
            ROWS=rows,
            SPLIT=split,
            BLOCK=width // split,
            RANKS=16,
            ADD=add is not None,
            LOW=True,
            KEEP=keep is not None,
            num_warps=c["WARPS"],
        )
    else:
        c, ranks = MANY, max(16, ceil_power(rank))
        rows = c["ROWS"] if tokens > SMALL else 16
        block = fit(c["BLOCK"] if size == 2 else 32, 2 * rows + ranks, size, c["STAGES"])
        _blocks[(triton.cdiv(tokens, rows),)](
            *tensors,
            *strides,
            ROWS=rows,
            BLOCK=block,
            RANKS=ranks,
            ADD=add is not None,
            KEEP=keep is not None,
            num_warps=max(c["WARPS"], warps(ranks)),
            num_stages=c["STAGES"],
        )
