"""RMSNorm backward, and the low-rank product of the gradient that it hands on, in one pass.

`_rows` holds whole rows in registers. With the product it is right for few tokens; for many, `_low` does some whole rows after
each other and then multiplies 16 of them at a time, reading them again out of L2.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .low import MOST, warps
from .low import low as skinny
from .shares import ceil_power, finish, fit

SMALL = 512          # tokens up to which the low-rank product is done with rows in registers
FACTOR = 131072      # bytes of the factor, up to which this is possible
FEW = dict(ROWS=1, WARPS=8)
MANY = dict(ROWS=16, STEP=2, BLOCK=256, WARPS=4, STAGES=3)  # STEP: whole rows at a time


@triton.jit
def _gradient(dy, x, gain, residual, out, normed, at, column, mask, inside, n, eps, dy_row, x_row, residual_row, out_row,
              normed_row, RESIDUAL: tl.constexpr, NORMED: tl.constexpr):
    """Whole rows [SPLIT, ROWS, BLOCK] of dx, stored. With u = dy * gain, r = 1/rms: dx = r*u - x * r³ * mean(u*x)."""
    xs = tl.load(x + at * x_row + column, mask=mask, other=0).to(tl.float32)
    u = tl.load(dy + at * dy_row + column, mask=mask, other=0).to(tl.float32)
    if RESIDUAL:
        more = tl.load(residual + at * residual_row + column, mask=mask, other=0).to(tl.float32)
    weight = tl.load(gain + column, mask=inside, other=0)
    u *= weight
    squares = tl.sum(tl.sum(xs * xs, 2, keep_dims=True), 0, keep_dims=True)
    products = tl.sum(tl.sum(u * xs, 2, keep_dims=True), 0, keep_dims=True)
    inverse = tl.rsqrt(squares / n + eps)
    dx = u * inverse - xs * (products / n * inverse * inverse * inverse)
    if RESIDUAL:
        dx += more
    dx = dx.to(out.dtype.element_ty)
    tl.store(out + at * out_row + column, dx, mask=mask)
    if NORMED:
        tl.store(normed + at * normed_row + column, (xs * inverse * weight).to(normed.dtype.element_ty), mask=mask)
    return dx


@triton.jit(do_not_specialize=["tokens"])
def _rows(dy, x, gain, residual, out, normed, b, low, tokens, n, rank, eps, dy_row, x_row, residual_row, out_row, normed_row,
          b_inner, b_rank, low_row, ROWS: tl.constexpr, SPLIT: tl.constexpr, BLOCK: tl.constexpr, RANKS: tl.constexpr,
          RESIDUAL: tl.constexpr, NORMED: tl.constexpr, LOW: tl.constexpr):
    """Grid (row blocks). Rows are [SPLIT, ROWS, BLOCK], so that each warp multiplies a piece of them."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    s, k, j = tl.arange(0, SPLIT) * BLOCK, tl.arange(0, BLOCK), tl.arange(0, RANKS)
    column = s[:, None, None] + k[None, None, :]
    if LOW:  # depends on nothing, so it is on its way first
        inner = s[:, None, None] + k[None, :, None]
        factor = tl.load(b + inner.to(tl.int64) * b_inner + j[None, None, :] * b_rank,
                         mask=(inner < n) & (j < rank)[None, None, :], other=0)
    mask = (row < tokens)[None, :, None] & (column < n)
    dx = _gradient(dy, x, gain, residual, out, normed, row.to(tl.int64)[None, :, None], column, mask, column < n, n, eps, dy_row,
                   x_row, residual_row, out_row, normed_row, RESIDUAL, NORMED)
    if LOW:
        product = tl.sum(tl.dot(dx, factor.to(dx.dtype), input_precision="tf32x3"), 0)
        finish(product, low, low, 0, 0, 1, low, low, row, tokens, rank, low_row, low_row, 1, False)


@triton.jit(do_not_specialize=["tokens"])
def _low(dy, x, gain, residual, out, normed, b, low, tokens, n, rank, eps, dy_row, x_row, residual_row, out_row, normed_row,
         b_inner, b_rank, low_row, ROWS: tl.constexpr, STEP: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
         RANKS: tl.constexpr, RESIDUAL: tl.constexpr, NORMED: tl.constexpr):
    """Grid (row blocks)."""
    begin = tl.program_id(0) * ROWS
    column = tl.arange(0, WIDTH)[None, None, :]
    for start in range(begin, begin + ROWS, STEP):
        some = (start + tl.arange(0, STEP))[None, :, None]
        _gradient(dy, x, gain, residual, out, normed, some.to(tl.int64), column, (some < tokens) & (column < n), column < n, n,
                  eps, dy_row, x_row, residual_row, out_row, normed_row, RESIDUAL, NORMED)
    tl.debug_barrier()  # what the loop below reads, other threads of this program have written
    row = begin + tl.arange(0, ROWS)
    inside, at = (row < tokens)[:, None], row.to(tl.int64)[:, None]
    j, k = tl.arange(0, RANKS), tl.arange(0, BLOCK)
    total = tl.zeros([ROWS, RANKS], tl.float32)
    for start in range(0, n, BLOCK):
        here = start + k < n
        y = tl.load(out + at * out_row + (start + k)[None, :], mask=inside & here[None, :], other=0)
        factor = tl.load(b + (start + k).to(tl.int64)[:, None] * b_inner + j[None, :] * b_rank,
                         mask=here[:, None] & (j < rank)[None, :], other=0)
        total = tl.dot(y, factor.to(y.dtype), total, input_precision="tf32x3")
    finish(total, low, low, 0, 0, 1, low, low, row, tokens, rank, low_row, low_row, 1, False)


def _warps(elements: int) -> int:
    """Warps for a program that holds so many elements: 16 or 32 of them a thread."""
    return 4 if elements <= 4096 else 8 if elements <= 8192 else 16


def rms_norm_backward(dy, x, gain, eps, residual, out, normed=None, *, b=None, low=None):
    """See plain.rms_norm_backward."""
    if b is not None and b.shape[1] > MOST:
        rms_norm_backward(dy, x, gain, eps, residual, out, normed)
        skinny(out, b, low)
        return
    (tokens, n), size = x.shape, out.element_size()
    width, rank = max(16, ceil_power(n)), 0 if b is None else b.shape[1]
    ranks = max(16, ceil_power(rank))
    residual_, normed_ = x if residual is None else residual, x if normed is None else normed
    b_, low_ = (x, x) if b is None else (b, low)
    given = (dy, x, gain, residual_, out, normed_, b_, low_, tokens, n, rank, eps, dy.stride(0), x.stride(0),
             residual_.stride(0), out.stride(0), normed_.stride(0), *b_.stride(), low_.stride(0))
    has = dict(RANKS=ranks, RESIDUAL=residual is not None, NORMED=normed is not None)
    if not rank:
        _rows[(tokens,)](*given, ROWS=1, SPLIT=1, BLOCK=width, LOW=False, num_warps=_warps(width), **has)
    elif tokens <= SMALL and width * ranks * size <= FACTOR:
        c = FEW
        split = min(c["WARPS"], width // 16)
        _rows[(triton.cdiv(tokens, c["ROWS"]),)](*given, ROWS=c["ROWS"], SPLIT=split, BLOCK=width // split, LOW=True,
                                                 num_warps=c["WARPS"], **has)
    else:
        c = MANY
        block = fit(c["BLOCK"] if size == 2 else 64, c["ROWS"] + ranks, size, c["STAGES"])
        step = max(1, min(c["STEP"], 16384 // width))
        _low[(triton.cdiv(tokens, c["ROWS"]),)](
            *given, ROWS=c["ROWS"], STEP=step, WIDTH=width, BLOCK=block, num_stages=c["STAGES"],
            num_warps=max(c["WARPS"], warps(ranks), _warps(step * width)), **has)
