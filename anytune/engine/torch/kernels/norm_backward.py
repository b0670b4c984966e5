"""RMSNorm backward; for few tokens with the low-rank product of the gradient that it hands on in the same pass.

A program holds whole rows in registers, and beside them the factor. For many tokens, where that would be read too
often, the product is a launch of its own: on an H100 65 µs for both at 8192 rows of 2048, against 79 for the best that
did it in one.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .entry import Entry
from .low import low as skinny
from .shares import ceil_power, finish

SMALL = 512  # tokens up to which the low-rank product is done with rows in registers
FACTOR = 131072  # bytes of the factor, up to which this is possible
FEW = dict(ROWS=1, WARPS=8)


@triton.jit
def _gradient(
    dy,
    x,
    gain,
    residual,
    out,
    normed,
    inverses,
    at,
    column,
    mask,
    inside,
    there,
    n,
    eps,
    dy_row,
    x_row,
    residual_row,
    out_row,
    normed_row,
    RESIDUAL: tl.constexpr,
    NORMED: tl.constexpr,
    INVERSE: tl.constexpr,
):
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
    if INVERSE:
        tl.store(inverses + at, inverse, mask=there)
    return dx


@Entry
@triton.jit(do_not_specialize=["tokens"])
def _rows(
    dy,
    x,
    gain,
    residual,
    out,
    normed,
    inverses,
    b,
    low,
    tokens,
    n,
    rank,
    eps,
    dy_row,
    x_row,
    residual_row,
    out_row,
    normed_row,
    b_inner,
    b_rank,
    low_row,
    ROWS: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK: tl.constexpr,
    RANKS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    NORMED: tl.constexpr,
    INVERSE: tl.constexpr,
    LOW: tl.constexpr,
):
    """Grid (row blocks). Rows are [SPLIT, ROWS, BLOCK], so that each warp multiplies a piece of them."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    s, k, j = tl.arange(0, SPLIT) * BLOCK, tl.arange(0, BLOCK), tl.arange(0, RANKS)
    column = s[:, None, None] + k[None, None, :]
    if LOW:  # depends on nothing, so it is on its way first
        inner = s[:, None, None] + k[None, :, None]
        factor = tl.load(
            b + inner.to(tl.int64) * b_inner + j[None, None, :] * b_rank,
            mask=(inner < n) & (j < rank)[None, None, :],
            other=0,
        )
    mask = (row < tokens)[None, :, None] & (column < n)
    dx = _gradient(
        dy,
        x,
        gain,
        residual,
        out,
        normed,
        inverses,
        row.to(tl.int64)[None, :, None],
        column,
        mask,
        column < n,
        (row < tokens)[None, :, None],
        n,
        eps,
        dy_row,
        x_row,
        residual_row,
        out_row,
        normed_row,
        RESIDUAL,
        NORMED,
        INVERSE,
    )
    if LOW:
        product = tl.sum(tl.dot(dx, factor.to(dx.dtype), input_precision="tf32x3"), 0)
        finish(product, low, low, 0, 0, 1, low, low, row, tokens, rank, low_row, low_row, 1, False)


def _warps(elements: int) -> int:
    """Warps for a program that holds so many elements: 16 or 32 of them a thread."""
    return 4 if elements <= 4096 else 8 if elements <= 8192 else 16


def rms_norm_backward(dy, x, gain, eps, residual, out, normed=None, *, inverse=None, b=None, low=None):
    """See plain.rms_norm_backward."""
    (tokens, n), size = x.shape, out.element_size()
    width, rank = max(16, ceil_power(n)), 0 if b is None else b.shape[1]
    ranks = max(16, ceil_power(rank))
    if rank and (tokens > SMALL or width * ranks * size > FACTOR):
        rms_norm_backward(dy, x, gain, eps, residual, out, normed, inverse=inverse)
        skinny(out, b, low)
        return
    residual_, normed_ = x if residual is None else residual, x if normed is None else normed
    b_, low_ = (x, x) if b is None else (b, low)
    rows, split, warps = (FEW["ROWS"], min(FEW["WARPS"], width // 16), FEW["WARPS"]) if rank else (1, 1, _warps(width))
    _rows[(triton.cdiv(tokens, rows),)](
        dy,
        x,
        gain,
        residual_,
        out,
        normed_,
        gain if inverse is None else inverse,
        b_,
        low_,
        tokens,
        n,
        rank,
        eps,
        dy.stride(0),
        x.stride(0),
        residual_.stride(0),
        out.stride(0),
        normed_.stride(0),
        *b_.stride(),
        low_.stride(0),
        ROWS=rows,
        SPLIT=split,
        BLOCK=width // split,
        RANKS=ranks,
        RESIDUAL=residual is not None,
        NORMED=normed is not None,
        INVERSE=inverse is not None,
        LOW=bool(rank),
        num_warps=warps,
    )
