"""The gradients of all pairs of a group. They sum over the tokens, an axis that programs share; see shares.py."""

from __future__ import annotations

import triton
import triton.language as tl

from .entry import Entry
from .. import plain_low
from ..plain_low import COLUMNS, GradientTable
from .low import MOST, warps
from .shares import ceil_power, collect, deposit, fit, partials, share

# STEP: rows at a time; the others as in low.py
GRADIENTS = dict(STEP=128, SHARE=512, PROGRAMS=264, STAGES=3)


@triton.jit
def _places(
    rows,
    tiles,
    tile,
    in_features,
    rank,
    A_TILES: tl.constexpr,
    ON_A: tl.constexpr,
    WIDE: tl.constexpr,
    RANKS: tl.constexpr,
    COLUMNS_ALIGN: tl.constexpr,
    RANK_ALIGN: tl.constexpr,
    FLAT_ALIGN: tl.constexpr,
):
    """Of a tile: its first column and its end, its first rank,
    and for [WIDE, RANKS] the places in flat and which exist."""
    j, c = tl.arange(0, RANKS), tl.arange(0, WIDE)
    if ON_A:
        begin, end, first = tile * WIDE, in_features, 0
        row = tl.multiple_of(tl.load(rows + j, mask=j < rank, other=-1), [FLAT_ALIGN])
        place = row[None, :] + (begin + c)[:, None]
        there = (row >= 0)[None, :] & (begin + c < end)[:, None]
    else:
        entry = tiles + (tile - A_TILES) * 5
        begin = tl.multiple_of(tl.load(entry).to(tl.int32), COLUMNS_ALIGN)
        end = tl.multiple_of(tl.load(entry + 1).to(tl.int32), COLUMNS_ALIGN)
        first = tl.multiple_of(tl.load(entry + 2).to(tl.int32), RANK_ALIGN)
        ranks = tl.multiple_of(tl.load(entry + 3).to(tl.int32), RANK_ALIGN)
        base = tl.multiple_of(tl.load(entry + 4), FLAT_ALIGN)
        place = base + c[:, None] * ranks + j[None, :]
        there = (begin + c < end)[:, None] & (j < ranks)[None, :]
    return begin, end, first, place, there


@triton.jit
def gradient_tile(
    y,
    low,
    rows,
    tiles,
    flat,
    gain,
    inverse,
    parts,
    counter,
    tile,
    tokens,
    span,
    shares,
    in_features,
    rank,
    scale,
    y_row,
    low_row,
    NORM: tl.constexpr,
    A_TILES: tl.constexpr,
    ON_A: tl.constexpr,
    WIDE: tl.constexpr,
    RANKS: tl.constexpr,
    ROWS: tl.constexpr,
    SHARES: tl.constexpr,
    COLUMNS_ALIGN: tl.constexpr,
    RANK_ALIGN: tl.constexpr,
    FLAT_ALIGN: tl.constexpr,
):
    """Adds [WIDE columns, RANKS] of yᵀ · low to flat, of which this program sums its share of rows.
    parts: a tile's own."""
    begin, end, first, place, there = _places(
        rows, tiles, tile, in_features, rank, A_TILES, ON_A, WIDE, RANKS, COLUMNS_ALIGN, RANK_ALIGN, FLAT_ALIGN
    )
    t, c, j = tl.arange(0, ROWS), tl.arange(0, WIDE), tl.arange(0, RANKS)
    from_row = tl.program_id(1) * span
    to_row = tl.minimum(from_row + span, tokens)
    total = tl.zeros([WIDE, RANKS], tl.float32)
    if NORM:
        weight = tl.load(gain + begin + c, mask=begin + c < end, other=0)[None, :]
    for start in range(from_row, to_row, ROWS):
        at = (start + t).to(tl.int64)[:, None]
        inside = (start + t < to_row)[:, None]
        ys = tl.load(y + at * y_row + (begin + c)[None, :], mask=inside & (begin + c < end)[None, :], other=0)
        ls = tl.load(low + at * low_row + (first + j)[None, :], mask=inside & (first + j < rank)[None, :], other=0)
        if NORM:
            factor = tl.load(inverse + start + t, mask=start + t < to_row, other=0)[:, None]
            ys = (ys.to(tl.float32) * factor * weight).to(ys.dtype)
        total = tl.dot(tl.trans(ys), ls, total, input_precision="tf32x3")
    if ON_A:
        total *= scale
    if SHARES == 1:
        tl.store(flat + place, tl.load(flat + place, mask=there, other=0) + total, mask=there)
    else:
        if deposit(total, parts, counter + tile, 0, tl.program_id(1), shares):
            total = collect(parts, 0, shares, WIDE, RANKS, SHARES)
            tl.store(flat + place, tl.load(flat + place, mask=there, other=0) + total, mask=there)


@Entry
@triton.jit(do_not_specialize=["tokens", "span", "shares"])
def _gradients(
    x,
    low_dy,
    dy,
    low_x,
    rows,
    tiles,
    flat,
    gain,
    inverse,
    parts,
    counter,
    tokens,
    span,
    shares,
    in_features,
    rank,
    scale,
    x_row,
    low_dy_row,
    dy_row,
    low_x_row,
    NORM: tl.constexpr,
    A_TILES: tl.constexpr,
    WIDE: tl.constexpr,
    RANKS_A: tl.constexpr,
    RANKS_B: tl.constexpr,
    ROWS: tl.constexpr,
    SHARES: tl.constexpr,
    COLUMNS_ALIGN: tl.constexpr,
    RANK_ALIGN: tl.constexpr,
    FLAT_ALIGN: tl.constexpr,
):
    """Grid (column tiles of x, then of dy; shares of the rows)."""
    tile = tl.program_id(0)
    if tile < A_TILES:
        gradient_tile(
            x,
            low_dy,
            rows,
            tiles,
            flat,
            gain,
            inverse,
            parts + tile.to(tl.int64) * shares * (WIDE * RANKS_A),
            counter,
            tile,
            tokens,
            span,
            shares,
            in_features,
            rank,
            scale,
            x_row,
            low_dy_row,
            NORM,
            A_TILES,
            True,
            WIDE,
            RANKS_A,
            ROWS,
            SHARES,
            COLUMNS_ALIGN,
            RANK_ALIGN,
            FLAT_ALIGN,
        )
    else:
        before = A_TILES * RANKS_A + (tile.to(tl.int64) - A_TILES) * RANKS_B
        gradient_tile(
            dy,
            low_x,
            rows,
            tiles,
            flat,
            gain,
            inverse,
            parts + before * shares * WIDE,
            counter,
            tile,
            tokens,
            span,
            shares,
            in_features,
            rank,
            scale,
            dy_row,
            low_x_row,
            False,
            A_TILES,
            False,
            WIDE,
            RANKS_B,
            ROWS,
            SHARES,
            COLUMNS_ALIGN,
            RANK_ALIGN,
            FLAT_ALIGN,
        )


def gradients(x, low_dy, dy, low_x, table: GradientTable, flat, scale, norm=None):
    """See plain_low.gradients."""
    if not table.parts:
        return
    rank = (low_x if x is None else low_dy).shape[1]
    if rank > MOST:
        plain_low.gradients(x, low_dy, dy, low_x, table, flat, scale, norm)
        return
    tokens, features = (dy if x is None else x).shape[0], table.in_features
    tiles_a, ranks_a, ranks_b = (
        triton.cdiv(features, COLUMNS),
        max(16, ceil_power(rank)),
        max(16, ceil_power(table.most)),
    )
    tiles_b = len(table.tiles)
    if x is None:
        x, low_dy, tiles_a = dy, low_x, 0
    if dy is None:
        dy, low_x, tiles_b = x, low_dy, 0
    tiles, c = tiles_a + tiles_b, GRADIENTS
    step = fit(
        c["STEP"] if x.element_size() == 2 else 32, COLUMNS + max(ranks_a, ranks_b), x.element_size(), c["STAGES"]
    )
    shares, span = share(tokens, tiles, step, c["SHARE"], c["PROGRAMS"])
    parts, counter = partials(shares, 1, COLUMNS * (tiles_a * ranks_a + tiles_b * ranks_b), flat)
    _gradients[(tiles, shares)](
        x,
        low_dy,
        dy,
        low_x,
        table.rows,
        table.tiles,
        flat,
        *(norm or (flat, flat)),
        parts,
        counter,
        tokens,
        span,
        shares,
        features,
        rank,
        scale,
        x.stride(0),
        low_dy.stride(0),
        dy.stride(0),
        low_x.stride(0),
        NORM=norm is not None,
        A_TILES=tiles_a,
        WIDE=COLUMNS,
        RANKS_A=ranks_a,
        RANKS_B=ranks_b,
        ROWS=step,
        SHARES=ceil_power(shares),
        COLUMNS_ALIGN=table.columns_align,
        RANK_ALIGN=table.rank_align,
        FLAT_ALIGN=table.flat_align,
        num_warps=warps(ranks_a),
        num_stages=c["STAGES"],
    )
