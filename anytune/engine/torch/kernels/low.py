"""Skinny products of LoRA: x · w for a few columns. They sum over a long axis and have little output, so programs share
that axis; see shares.py."""

from __future__ import annotations

import triton
import triton.language as tl

from .entry import Entry
from .. import plain_low
from .shares import ceil_power, finish, fit, partials, share

MOST = 256  # ranks beside each other that a program holds; more are matrix products proper, which cuBLAS does
SMALL = 512  # tokens up to which `low` runs as FEW says
# ROWS, BLOCK: of a program's tile of x; SHARE: the least length of a share; PROGRAMS: at most (an H100 has 132
# multiprocessors)
FEW = dict(ROWS=16, BLOCK=128, SHARE=256, PROGRAMS=264, WARPS=4, STAGES=3)
MANY = dict(ROWS=64, BLOCK=128, SHARE=1024, PROGRAMS=264, WARPS=4, STAGES=4)


def warps(ranks: int) -> int:
    """Of a program that sums so many rank columns."""
    return 4 if ranks <= 128 else 8


@Entry
@triton.jit(do_not_specialize=["tokens", "shares"])  # that span is a multiple of 16 is what makes wide accesses legal
def _product(
    x,
    w,
    out,
    keep,
    scales,
    parts,
    counter,
    tokens,
    inner,
    rank,
    span,
    shares,
    x_row,
    w_inner,
    w_rank,
    out_row,
    keep_row,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    RANKS: tl.constexpr,
    SHARES: tl.constexpr,
    KEEP: tl.constexpr,
    SCALED: tl.constexpr,
):
    """Grid (row blocks, shares of the inner axis). SCALED: x is e4m3, and the sum is kept as it is."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside, at = (row < tokens)[:, None], row.to(tl.int64)[:, None]
    j, k = tl.arange(0, RANKS), tl.arange(0, BLOCK)
    begin = tl.program_id(1) * span
    end = tl.minimum(begin + span, inner)
    total = tl.zeros([ROWS, RANKS], tl.float32)
    for start in range(begin, end, BLOCK):
        here = (start + k) < inner  # a share is whole blocks, so only the end of the axis cuts one
        xs = tl.load(x + at * x_row + (start + k)[None, :], mask=inside & here[None, :], other=0.0)
        ws = tl.load(
            w + (start + k).to(tl.int64)[:, None] * w_inner + j[None, :] * w_rank,
            mask=here[:, None] & (j < rank)[None, :],
            other=0,
        )
        if SCALED:
            xs = xs.to(out.dtype.element_ty)  # exact
        total = tl.dot(xs, ws.to(xs.dtype), total, input_precision="tf32x3")
    finish(
        total,
        parts,
        counter,
        tl.program_id(0),
        tl.program_id(1),
        shares,
        out,
        keep,
        row,
        tokens,
        rank,
        out_row,
        keep_row,
        SHARES,
        KEEP,
        scales,
        SCALED,
    )


def low(x, w, out, *, keep=None, scale=None):
    """See plain_low.low."""
    if w.shape[1] > MOST:
        plain_low.low(x, w, out, keep=keep)
        return
    (tokens, inner), rank = x.shape, w.shape[1]
    c, ranks, size = FEW if tokens <= SMALL else MANY, max(16, ceil_power(rank)), x.element_size()
    block = fit(c["BLOCK"] * (2 if scale is not None else 1), c["ROWS"] + ranks, size, c["STAGES"])
    blocks = triton.cdiv(tokens, c["ROWS"])
    shares, span = share(inner, blocks, block, c["SHARE"], c["PROGRAMS"])
    parts, counter = partials(shares, blocks, c["ROWS"] * ranks, out)
    second = out if keep is None else keep
    _product[(blocks, shares)](
        x,
        w,
        out,
        second,
        out if scale is None else scale,
        parts,
        counter,
        tokens,
        inner,
        rank,
        span,
        shares,
        x.stride(0),
        w.stride(0),
        w.stride(1),
        out.stride(0),
        second.stride(0),
        ROWS=c["ROWS"],
        BLOCK=block,
        RANKS=ranks,
        SHARES=ceil_power(shares),
        KEEP=keep is not None,
        SCALED=scale is not None,
        num_warps=max(c["WARPS"], warps(ranks)),
        num_stages=c["STAGES"],
    )


def low_fp8(x, scale, w, out):
    """See plain_low.low_fp8."""
    rank = w.shape[1]
    if rank > MOST:
        plain_low.low_fp8(x, scale, w, out)
        return
    behind = x.as_strided((x.shape[0], rank), x.stride(), x.storage_offset() + x.shape[1])
    low(x, w, out, keep=behind, scale=scale)
