"""Products of a few rows with a matrix of GGUF blocks, by Triton: where decoding spends its time.

One row at a time is bound by reading the blocks: `_gemv` multiplies in registers. From two rows on `_gemm` dequantizes
tiles for the tensor cores; a matrix with too few rows to occupy the device is split along its columns, and `_collect`
adds the parts. No atomics: a sum has one order, so results repeat. All three can add a low-rank product, down · upᵀ.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .entry import Entry
from .. import blocks
from .formats import FORMATS, aligned, book_of, constants
from .overlap import overlap, settle

SUPPORTED: frozenset[str] = frozenset(FORMATS)
PROCESSORS = 132  # what a launch is to occupy; more do no harm

# _gemv: rows of a program by the matrix's rows (at least), and how many threads share a row at most.
GEMV_ROWS = ((8192, 4), (2048, 2), (0, 1))
GEMV_THREADS = 128
# _gemm: (rows, octets, warps, stages) of a step by the rows of x (at most) that a program takes; at 64 rows and more
# the tensor cores take the weights from registers. Of float32 (three products for one) a program holds less.
GEMM_TILES = {16: (64, 32, 4, 2), 32: (64, 32, 4, 2), 64: (64, 16, 4, 2)}
GEMM_OCTETS_FLOAT32 = 8
COLLECT = 256  # rows of a program


@Entry
@triton.jit
def _gemv(
    x,
    raw,
    book,
    down,
    up,
    out,
    rows,
    units,
    rank,
    raw_stride,
    up_stride,
    SCALES: tl.constexpr,
    OCTET: tl.constexpr,
    SIZE: tl.constexpr,
    SHIFT: tl.constexpr,
    WORD: tl.constexpr,
    LEAST: tl.constexpr,
    SPAN: tl.constexpr,
    R: tl.constexpr,
    C: tl.constexpr,
    RANK: tl.constexpr,
    OVERLAP: tl.constexpr = False,
):
    """One row of x. Program p: R rows of the matrix. A thread's unit is SPAN octets with one scale, of R rows."""
    settle(OVERLAP)
    row = tl.program_id(0) * R + tl.arange(0, R)
    start = raw + tl.minimum(row, rows - 1).to(tl.int64)[None, :] * raw_stride
    sums = tl.zeros((C, R), tl.float32)
    for first in range(0, units, C):
        unit = first + tl.arange(0, C)[:, None]
        at = tl.minimum(unit, units - 1) * SPAN
        block, g = start + (at >> SHIFT) * SIZE, at & (1 << SHIFT) - 1
        scale, least = SCALES(block, g)
        dot, whole = tl.zeros((C, R), tl.float32), tl.zeros((C, 1), tl.float32)
        for s in tl.static_range(SPAN):
            columns = x + (at + s)[:, :, None] * 8 + tl.arange(0, 8)[None, None, :]
            inside = tl.broadcast_to((unit < units)[:, :, None], columns.shape)
            xs = tl.load(columns, mask=inside, other=0.0).to(tl.float32)
            dot += tl.sum(OCTET(block, g + s, book, WORD) * xs, 2)
            if LEAST:
                whole += tl.sum(xs, 2)
        sums += scale * dot
        if LEAST:
            sums -= least * whole
    y = tl.sum(sums, 0)
    if RANK:
        y += _low_rank(down, up, row, rows, up_stride, rank, RANK)
    tl.store(out + row, y.to(out.dtype.element_ty), mask=row < rows)


@triton.jit
def _low_rank(down, up, row, rows, up_stride, rank, RANK: tl.constexpr):
    """One row of down · upᵀ: float32, the shape of row."""
    j = tl.arange(0, RANK)[None, :]
    d = tl.load(down + j, mask=j < rank, other=0.0).to(tl.float32)
    at = up + row.to(tl.int64)[:, None] * up_stride + j
    return tl.sum(d * tl.load(at, mask=(row < rows)[:, None] & (j < rank), other=0.0).to(tl.float32), 1)


@Entry
@triton.jit
def _gemm(
    x,
    raw,
    book,
    down,
    up,
    out,
    tokens,
    rows,
    octets,
    rank,
    share,
    x_stride,
    raw_stride,
    down_stride,
    up_stride,
    out_stride,
    SCALES: tl.constexpr,
    OCTET: tl.constexpr,
    SIZE: tl.constexpr,
    SHIFT: tl.constexpr,
    WORD: tl.constexpr,
    N: tl.constexpr,
    R: tl.constexpr,
    C: tl.constexpr,
    RANK: tl.constexpr,
):
    """N rows of x at a time. Program (p, t): R rows of the matrix, `share` octets of each, the t-th N rows of x.

    Where a row is more than one share, the parts are [parts, tokens, rows] of out, for _collect.
    """
    tiles = tl.cdiv(rows, R)
    part = tl.program_id(0) // tiles
    row = tl.program_id(0) % tiles * R + tl.arange(0, R)
    token = tl.program_id(1) * N + tl.arange(0, N)
    start = raw + tl.minimum(row, rows - 1).to(tl.int64)[None, :] * raw_stride
    x_row = x + tl.minimum(token, tokens - 1).to(tl.int64)[:, None] * x_stride
    sums = tl.zeros((R, N), tl.float32)
    for first in range(part * share, tl.minimum((part + 1) * share, octets), C):
        at = tl.minimum(first + tl.arange(0, C)[:, None], octets - 1)
        block, g = start + (at >> SHIFT) * SIZE, at & (1 << SHIFT) - 1
        scale, least = SCALES(block, g)
        w = scale[:, :, None] * OCTET(block, g, book, WORD) - least[:, :, None]
        w = tl.reshape(tl.permute(w.to(x.dtype.element_ty), (1, 0, 2)), (R, C * 8))
        column = first * 8 + tl.arange(0, C * 8)[None, :]
        xs = tl.load(x_row + column, mask=column < octets * 8, other=0.0)
        sums = tl.dot(w, tl.trans(xs), sums, input_precision="tf32x3")
    if RANK:
        j = tl.arange(0, RANK)
        d = tl.load(
            down + token[None, :] * down_stride + j[:, None],
            mask=(token < tokens)[None, :] & (j < rank)[:, None],
            other=0.0,
        ).to(tl.float32)
        u = tl.load(
            up + row.to(tl.int64)[:, None] * up_stride + j[None, :],
            mask=(row < rows)[:, None] & (j < rank)[None, :],
            other=0.0,
        ).to(tl.float32)
        sums = tl.dot(u, d, sums, input_precision="tf32x3")
    to = out + (part * tokens + token).to(tl.int64)[None, :] * out_stride + row[:, None]
    tl.store(to, sums.to(out.dtype.element_ty), mask=(token < tokens)[None, :] & (row < rows)[:, None])


@Entry
@triton.jit
def _collect(
    parts,
    down,
    up,
    out,
    tokens,
    rows,
    rank,
    count,
    down_stride,
    up_stride,
    out_stride,
    R: tl.constexpr,
    RANK: tl.constexpr,
):
    """out [tokens, rows] = the sum of parts [count, tokens, rows]. Program (p, t): R rows of one token."""
    row, token = tl.program_id(0) * R + tl.arange(0, R), tl.program_id(1)
    y = tl.zeros((R,), tl.float32)
    for part in range(count):
        y += tl.load(parts + (part * tokens + token).to(tl.int64) * rows + row, mask=row < rows, other=0.0)
    if RANK:
        y += _low_rank(down + token * down_stride, up, row, rows, up_stride, rank, RANK)
    tl.store(out + token.to(tl.int64) * out_stride + row, y.to(out.dtype.element_ty), mask=row < rows)


def _one(x, raw, name: str, out, pair, rank: int) -> None:
    down, up = pair
    (rows, _), octets = raw.shape, x.shape[1] // 8
    span = FORMATS[name].span
    units = octets // span
    threads = max(32, min(GEMV_THREADS, triton.next_power_of_2(units)))
    r = next(r for least, r in GEMV_ROWS if rows >= least)
    _gemv[(triton.cdiv(rows, r),)](
        x,
        raw,
        book_of(raw, name),
        down,
        up,
        out,
        rows,
        units,
        rank,
        raw.stride(0),
        up.stride(0),
        **constants(raw, name),
        LEAST=FORMATS[name].least,
        SPAN=span,
        R=r,
        C=threads,
        RANK=_padded(rank, 1),
        num_warps=threads // 32,
        **overlap(x, 1),
    )


def _some(x, raw, name: str, out, pair, rank: int) -> None:
    down, up = pair
    tokens, rows, octets = len(x), len(raw), x.shape[1] // 8
    n = min(64, max(16, triton.next_power_of_2(tokens)))
    r, c, warps, stages = GEMM_TILES[n]
    c = GEMM_OCTETS_FLOAT32 if x.dtype == torch.float32 else c
    tiles, steps = triton.cdiv(rows, r), triton.cdiv(octets, c)
    share = steps if tiles >= PROCESSORS else triton.cdiv(steps, min(steps, triton.cdiv(2 * PROCESSORS, tiles)))
    count = triton.cdiv(steps, share)
    into = out if count == 1 else torch.empty((count * tokens, rows), dtype=torch.float32, device=x.device)
    _gemm[(tiles * count, triton.cdiv(tokens, n))](
        x,
        raw,
        book_of(raw, name),
        down,
        up,
        into,
        tokens,
        rows,
        octets,
        rank,
        share * c,
        x.stride(0),
        raw.stride(0),
        down.stride(0),
        up.stride(0),
        into.stride(0),
        **constants(raw, name),
        N=n,
        R=r,
        C=c,
        RANK=_padded(rank, 16) if count == 1 else 0,
        num_warps=warps,
        num_stages=stages,
    )
    if count > 1:
        _collect[(triton.cdiv(rows, COLLECT), tokens)](
            into,
            down,
            up,
            out,
            tokens,
            rows,
            rank,
            count,
            down.stride(0),
            up.stride(0),
            out.stride(0),
            R=COLLECT,
            RANK=_padded(rank, 1),
            num_warps=4,
        )


def _padded(rank: int, least: int) -> int:
    return max(least, triton.next_power_of_2(rank)) if rank else 0


def gemv(
    x: torch.Tensor,
    raw: torch.Tensor,
    name: str,
    out: torch.Tensor,
    down: torch.Tensor | None = None,
    up: torch.Tensor | None = None,
) -> None:
    """out = x · dequantized(raw)ᵀ (+ down · upᵀ), summed in float32.

    x [n, in] float; raw uint8 [rows, row_bytes], blocks of type `name`; out [n, rows] float; down [n, r] float32 and
    up [rows, r] float: the low-rank pair, or neither. Any row strides; columns are adjacent. in is a multiple of 8.
    """
    pair, rank = ((x, x), 0) if down is None else ((down, up), down.shape[1])
    matrices = (x, raw, out, *pair)
    fits = (
        x.shape[1] == blocks.weights(raw, name)
        and x.shape[1] % 8 == 0
        and out.shape == (len(x), len(raw))
        and aligned(raw, name)
        and all(m.stride(1) == 1 for m in matrices)
    )
    if rank:
        fits = fits and (down.shape, up.shape) == ((len(x), rank), (len(raw), rank))
    if not fits:
        raise ValueError(f"no product of {name}: {', '.join(str(tuple(m.shape)) for m in matrices)}")
    if out.numel():
        (_one if len(x) == 1 else _some)(x, raw, name, out, pair, rank)
