"""Gated products; on the way they can make the low-rank product of their readers.
The backward is in glu_backward.py."""

from __future__ import annotations

import triton
import triton.language as tl

from .entry import Entry
from ..plain import STEEPEST
from .glu_backward import columns, glu_backward, sigmoid  # noqa: F401
from .low import MOST, warps
from .low import low as skinny
from .overlap import overlap, settle
from .shares import ceil_power, finish, fit, partials, share

STEEP = tl.constexpr(STEEPEST)
SMALL = 512  # tokens up to which the low-rank product runs as FEW says; see low.py
FEW = dict(ROWS=16, BLOCK=128, SHARE=64, PROGRAMS=528, WARPS=4, STAGES=2)


@Entry
@triton.jit
def _glu(
    gate,
    up,
    out,
    peak,
    n,
    blocks,
    gate_row,
    up_row,
    out_row,
    GELU: tl.constexpr,
    PEAK: tl.constexpr,
    BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr = False,
):
    """Grid (row and block of columns)."""
    settle(OVERLAP)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    column = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    mask = column < n
    g = tl.load(gate + row * gate_row + column, mask=mask, other=0).to(tl.float32)
    u = tl.load(up + row * up_row + column, mask=mask, other=0).to(tl.float32)
    s, slope = sigmoid(g, GELU)
    tl.store(out + row * out_row + column, (g * s * u).to(out.dtype.element_ty), mask=mask)
    if PEAK:
        largest = tl.max(tl.maximum(tl.abs(g * s), tl.abs(u) * STEEP), 0)
        tl.atomic_max(peak + row, largest, sem="relaxed")  # the same in any order


@Entry
@triton.jit(do_not_specialize=["tokens", "shares"])
def _glu_low(
    gate,
    up,
    out,
    a,
    low,
    keep,
    parts,
    counter,
    tokens,
    n,
    rank,
    span,
    shares,
    gate_row,
    up_row,
    out_row,
    a_row,
    low_row,
    keep_row,
    GELU: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    RANKS: tl.constexpr,
    SHARES: tl.constexpr,
    KEEP: tl.constexpr,
):
    """Grid (row blocks, shares of the columns)."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside, at = (row < tokens)[:, None], row.to(tl.int64)[:, None]
    j = tl.arange(0, RANKS)
    begin = tl.program_id(1) * span
    total = tl.zeros([ROWS, RANKS], tl.float32)
    for start in range(begin, tl.minimum(begin + span, n), BLOCK):
        column = start + tl.arange(0, BLOCK)
        mask = inside & (column < n)[None, :]
        g = tl.load(gate + at * gate_row + column[None, :], mask=mask, other=0).to(tl.float32)
        u = tl.load(up + at * up_row + column[None, :], mask=mask, other=0).to(tl.float32)
        factor = tl.load(
            a + j.to(tl.int64)[:, None] * a_row + column[None, :],
            mask=(j < rank)[:, None] & (column < n)[None, :],
            other=0,
        )
        s, slope = sigmoid(g, GELU)
        y = (g * s * u).to(out.dtype.element_ty)
        tl.store(out + at * out_row + column[None, :], y, mask=mask)
        total = tl.dot(y, tl.trans(factor.to(y.dtype)), total, input_precision="tf32x3")
    finish(
        total,
        parts,
        counter,
        tl.program_id(0),
        tl.program_id(1),
        shares,
        low,
        keep,
        row,
        tokens,
        rank,
        low_row,
        keep_row,
        SHARES,
        KEEP,
    )


def glu(gate, up, activation, out, a=None, low=None, *, keep=None, peak=None):
    """See plain.glu. For many tokens the low-rank product is a launch of its own: 77 and 40 µs on an H200 at 8192 rows
    of 6144, against 137 in one."""
    (tokens, n), gelu = gate.shape, activation == "gelu"
    if a is None or a.shape[0] > MOST or tokens > SMALL or peak is not None:
        block, blocks = columns(n)
        _glu[(tokens * blocks,)](
            gate,
            up,
            out,
            out if peak is None else peak,
            n,
            blocks,
            gate.stride(0),
            up.stride(0),
            out.stride(0),
            GELU=gelu,
            PEAK=peak is not None,
            BLOCK=block,
            num_warps=4,
            **overlap(gate, tokens),
        )
        if a is not None:
            skinny(out, a.t(), low, keep=keep)
        return
    c, rank, size = FEW, a.shape[0], out.element_size()
    rows, ranks = c["ROWS"], max(16, ceil_power(rank))
    block, blocks = fit(c["BLOCK"], 2 * rows + ranks, size, c["STAGES"]), triton.cdiv(tokens, rows)
    shares, span = share(n, blocks, block, c["SHARE"], c["PROGRAMS"])
    parts, counter = partials(shares, blocks, rows * ranks, out)
    second = low if keep is None else keep
    _glu_low[(blocks, shares)](
        gate,
        up,
        out,
        a,
        low,
        second,
        parts,
        counter,
        tokens,
        n,
        rank,
        span,
        shares,
        gate.stride(0),
        up.stride(0),
        out.stride(0),
        a.stride(0),
        low.stride(0),
        second.stride(0),
        GELU=gelu,
        ROWS=rows,
        BLOCK=block,
        RANKS=ranks,
        SHARES=ceil_power(shares),
        KEEP=keep is not None,
        num_warps=max(c["WARPS"], warps(ranks)),
        num_stages=c["STAGES"],
    )
