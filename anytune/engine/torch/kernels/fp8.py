"""Rounding to e4m3 with a scale for each row, and matrices rounded and turned; see plain_fp8.py."""

from __future__ import annotations

import triton
import triton.language as tl

from .entry import Entry
from .rounding import eighth, row_scale
from .shares import ceil_power

TILE = 64


@Entry
@triton.jit
def _quantize(
    x,
    low,
    out,
    scales,
    sizes,
    n,
    rank,
    x_row,
    low_row,
    out_row,
    BLOCK: tl.constexpr,
    RANKS: tl.constexpr,
    LOW: tl.constexpr,
    SIZE: tl.constexpr,
):
    """Grid (rows)."""
    row = tl.program_id(0).to(tl.int64)
    column, j = tl.arange(0, BLOCK), tl.arange(0, RANKS)
    values = tl.load(x + row * x_row + column, mask=column < n, other=0).to(tl.float32)
    scale = row_scale(tl.max(tl.abs(values), 0))
    tl.store(scales + row, scale)
    tl.store(out + row * out_row + column, eighth(values / scale), mask=column < n)
    if LOW:
        more = tl.load(low + row * low_row + j, mask=j < rank, other=0).to(tl.float32)
        tl.store(out + row * out_row + n + j, eighth(more / scale), mask=j < rank)
    if SIZE:
        tl.store(sizes + row, tl.sqrt(tl.sum(values * values, 0)))


def quantize(x, low, out, scale, size=None):
    """See plain_fp8.quantize."""
    (tokens, n), rank = x.shape, 0 if low is None else low.shape[1]
    block, more = ceil_power(n), x if low is None else low
    _quantize[(tokens,)](
        x,
        more,
        out,
        scale,
        scale if size is None else size,
        n,
        rank,
        x.stride(0),
        more.stride(0),
        out.stride(0),
        BLOCK=block,
        RANKS=max(16, ceil_power(rank)),
        LOW=rank > 0,
        SIZE=size is not None,
        num_warps=min(16, max(1, block // 1024)),
    )


@Entry
@triton.jit
def _turn(source, scales, out, rows, n, source_row, out_row, TILE: tl.constexpr):
    """Grid (blocks of columns, blocks of rows)."""
    column = tl.program_id(0) * TILE + tl.arange(0, TILE)
    row = tl.program_id(1) * TILE + tl.arange(0, TILE)
    values = tl.load(
        source + row.to(tl.int64)[:, None] * source_row + column[None, :],
        mask=(row < rows)[:, None] & (column < n)[None, :],
        other=0,
    ).to(tl.float32)
    scale = tl.load(scales + column, mask=column < n, other=1)
    made = eighth(values / scale[None, :])
    tl.store(
        out + column.to(tl.int64)[:, None] * out_row + row[None, :],
        tl.trans(made),
        mask=(column < n)[:, None] & (row < rows)[None, :],
    )


def turn(source, scale, out):
    """See plain_fp8.turn."""
    rows, n = source.shape
    _turn[(triton.cdiv(n, TILE), triton.cdiv(rows, TILE))](
        source, scale, out, rows, n, source.stride(0), out.stride(0), TILE=TILE, num_warps=4
    )
