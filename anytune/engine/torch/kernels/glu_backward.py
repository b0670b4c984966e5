"""Backward of gated products; for few tokens with the low-rank product of the gradients that it
hands on in the same pass."""

from __future__ import annotations

import triton
import triton.language as tl

from .entry import Entry
from .. import plain_low
from .low import MOST, warps
from .low import low as skinny
from .shares import ceil_power, finish, fit, partials, share

BLOCK = 2048  # columns of a program without the low-rank product
SMALL = 512  # tokens up to which the low-rank product is made in the same pass
FEW = dict(ROWS=16, BLOCK=64, SHARE=128, PROGRAMS=528, WARPS=4, STAGES=3)


def columns(n: int) -> tuple[int, int]:
    """(columns of a program, programs of a row)."""
    block = min(BLOCK, ceil_power(n))
    return block, triton.cdiv(n, block)


@triton.jit
def sigmoid(x, GELU: tl.constexpr):
    """(s, slope): act(x) = x * s with s = σ(z), and slope = dz/dx. silu: z = x. gelu, tanh form:
    z = 2 √(2/π) (x + 0.044715 x³), since (1 + tanh y)/2 = σ(2y)."""
    if GELU:
        z = 1.5957691216057308 * (x + 0.044715 * x * x * x)
        slope = 1.5957691216057308 * (1.0 + 0.134145 * x * x)
    else:
        z, slope = x, 1.0
    return 1.0 / (1.0 + tl.exp(-z)), slope


@Entry
@triton.jit
def _backward(
    dy,
    gate,
    up,
    dgate,
    dup,
    out,
    n,
    blocks,
    dy_row,
    gate_row,
    up_row,
    dgate_row,
    dup_row,
    out_row,
    GELU: tl.constexpr,
    AGAIN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (row and block of columns)."""
    row = (tl.program_id(0) // blocks).to(tl.int64)
    column = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    mask = column < n
    g = tl.load(gate + row * gate_row + column, mask=mask, other=0).to(tl.float32)
    u = tl.load(up + row * up_row + column, mask=mask, other=0).to(tl.float32)
    d = tl.load(dy + row * dy_row + column, mask=mask, other=0).to(tl.float32)
    s, slope = sigmoid(g, GELU)
    value = g * s
    tl.store(
        dgate + row * dgate_row + column,
        (d * u * (s + value * (1.0 - s) * slope)).to(dgate.dtype.element_ty),
        mask=mask,
    )
    tl.store(dup + row * dup_row + column, (d * value).to(dup.dtype.element_ty), mask=mask)
    if AGAIN:
        tl.store(out + row * out_row + column, (value * u).to(out.dtype.element_ty), mask=mask)


@Entry
@triton.jit(do_not_specialize=["tokens", "shares"])
def _backward_low(
    dy,
    gate,
    up,
    dgate,
    dup,
    out,
    b,
    low,
    parts,
    counter,
    tokens,
    n,
    rank,
    span,
    shares,
    dy_row,
    gate_row,
    up_row,
    dgate_row,
    dup_row,
    out_row,
    b_inner,
    b_rank,
    low_row,
    GELU: tl.constexpr,
    AGAIN: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    RANKS: tl.constexpr,
    SHARES: tl.constexpr,
):
    """Grid (row blocks, shares of the columns)."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside, at = (row < tokens)[:, None], row.to(tl.int64)[:, None]
    j, k = tl.arange(0, RANKS), tl.arange(0, BLOCK)
    begin = tl.program_id(1) * span
    total = tl.zeros([ROWS, RANKS], tl.float32)
    for start in range(begin, tl.minimum(begin + span, n), BLOCK):
        column, inner = (start + k)[None, :], (start + k).to(tl.int64)[:, None]
        mask, there = inside & (column < n), (start + k < n)[:, None] & (j < rank)[None, :]
        g = tl.load(gate + at * gate_row + column, mask=mask, other=0).to(tl.float32)
        u = tl.load(up + at * up_row + column, mask=mask, other=0).to(tl.float32)
        d = tl.load(dy + at * dy_row + column, mask=mask, other=0).to(tl.float32)
        b_gate = tl.load(b + inner * b_inner + j[None, :] * b_rank, mask=there, other=0)
        b_up = tl.load(b + (n + inner) * b_inner + j[None, :] * b_rank, mask=there, other=0)
        s, slope = sigmoid(g, GELU)
        value = g * s
        to_gate = (d * u * (s + value * (1.0 - s) * slope)).to(dgate.dtype.element_ty)
        to_up = (d * value).to(dup.dtype.element_ty)
        tl.store(dgate + at * dgate_row + column, to_gate, mask=mask)
        tl.store(dup + at * dup_row + column, to_up, mask=mask)
        if AGAIN:
            tl.store(out + at * out_row + column, (value * u).to(out.dtype.element_ty), mask=mask)
        total = tl.dot(to_gate, b_gate.to(to_gate.dtype), total, input_precision="tf32x3")
        total = tl.dot(to_up, b_up.to(to_up.dtype), total, input_precision="tf32x3")
    finish(
        total,
        parts,
        counter,
        tl.program_id(0),
        tl.program_id(1),
        shares,
        low,
        low,
        row,
        tokens,
        rank,
        low_row,
        low_row,
        SHARES,
        False,
    )


def _low_of_pair(dgate, dup, b, low) -> None:
    n, base = dgate.shape[1], dgate.storage_offset()
    if (
        dgate.untyped_storage().data_ptr() == dup.untyped_storage().data_ptr()
        and dgate.stride() == dup.stride()
        and (dup.storage_offset() == base + n)
    ):
        skinny(dgate.as_strided((dgate.shape[0], 2 * n), dgate.stride()), b, low)
    else:
        plain_low.low_of_pair(dgate, dup, b, low)


def glu_backward(dy, gate, up, activation, dgate, dup, out=None, *, b=None, low=None):
    """See plain.glu_backward."""
    (tokens, n), gelu, again = gate.shape, activation == "gelu", gate if out is None else out
    tensors = (dy, gate, up, dgate, dup, again)
    strides = tuple(t.stride(0) for t in tensors)
    if b is None or b.shape[1] > MOST or tokens > SMALL:
        block, blocks = columns(n)
        _backward[(tokens * blocks,)](
            *tensors, n, blocks, *strides, GELU=gelu, AGAIN=out is not None, BLOCK=block, num_warps=4
        )
        if b is not None:
            _low_of_pair(dgate, dup, b, low)
        return
    c, rank, size = FEW, b.shape[1], dgate.element_size()
    rows, ranks = c["ROWS"], max(16, ceil_power(rank))
    block, blocks = fit(c["BLOCK"], 3 * rows + 2 * ranks, size, c["STAGES"]), triton.cdiv(tokens, rows)
    shares, span = share(n, blocks, block, c["SHARE"], c["PROGRAMS"])
    parts, counter = partials(shares, blocks, rows * ranks, low)
    _backward_low[(blocks, shares)](
        *tensors,
        b,
        low,
        parts,
        counter,
        tokens,
        n,
        rank,
        span,
        shares,
        *strides,
        *b.stride(),
        low.stride(0),
        GELU=gelu,
        AGAIN=out is not None,
        ROWS=rows,
        BLOCK=block,
        RANKS=ranks,
        SHARES=ceil_power(shares),
        num_warps=max(c["WARPS"], warps(ranks)),
        num_stages=c["STAGES"],
    )
