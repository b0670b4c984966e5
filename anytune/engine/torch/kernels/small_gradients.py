"""The gradients of several groups' pairs in one launch, for few tokens:
there each launch costs about as much as its work."""

from __future__ import annotations

import math

import triton
import triton.language as tl

from .entry import Entry
from .. import plain_low
from ..plain_low import COLUMNS
from .low import MOST, warps
from .low_gradients import gradient_tile
from .shares import ceil_power

ROWS = 32  # at a time


@triton.jit
def _group(
    tile,
    x,
    low_dy,
    dy,
    low_x,
    rows,
    tiles,
    flat,
    tokens,
    in_features,
    rank,
    scale,
    x_row,
    low_dy_row,
    dy_row,
    low_x_row,
    A_TILES: tl.constexpr,
    RANKS_A: tl.constexpr,
    RANKS_B: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS_ALIGN: tl.constexpr,
    RANK_ALIGN: tl.constexpr,
    FLAT_ALIGN: tl.constexpr,
):
    """One tile of a group: its A's first, then its B's."""
    if tile < A_TILES:
        gradient_tile(
            x,
            low_dy,
            rows,
            tiles,
            flat,
            flat,
            flat,
            flat,
            flat,
            tile,
            tokens,
            tokens,
            1,
            in_features,
            rank,
            scale,
            x_row,
            low_dy_row,
            False,
            A_TILES,
            True,
            WIDE,
            RANKS_A,
            ROWS,
            1,
            COLUMNS_ALIGN,
            RANK_ALIGN,
            FLAT_ALIGN,
        )
    else:
        gradient_tile(
            dy,
            low_x,
            rows,
            tiles,
            flat,
            flat,
            flat,
            flat,
            flat,
            tile,
            tokens,
            tokens,
            1,
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
            1,
            COLUMNS_ALIGN,
            RANK_ALIGN,
            FLAT_ALIGN,
        )


@Entry
@triton.jit(do_not_specialize=["tokens"])
def _several(
    flat,
    tokens,
    x0,
    low_dy0,
    dy0,
    low_x0,
    rows0,
    tiles0,
    in0,
    rank0,
    scale0,
    x_row0,
    low_dy_row0,
    dy_row0,
    low_x_row0,
    x1,
    low_dy1,
    dy1,
    low_x1,
    rows1,
    tiles1,
    in1,
    rank1,
    scale1,
    x_row1,
    low_dy_row1,
    dy_row1,
    low_x_row1,
    x2,
    low_dy2,
    dy2,
    low_x2,
    rows2,
    tiles2,
    in2,
    rank2,
    scale2,
    x_row2,
    low_dy_row2,
    dy_row2,
    low_x_row2,
    x3,
    low_dy3,
    dy3,
    low_x3,
    rows3,
    tiles3,
    in3,
    rank3,
    scale3,
    x_row3,
    low_dy_row3,
    dy_row3,
    low_x_row3,
    A0: tl.constexpr,
    RA0: tl.constexpr,
    RB0: tl.constexpr,
    END0: tl.constexpr,
    A1: tl.constexpr,
    RA1: tl.constexpr,
    RB1: tl.constexpr,
    END1: tl.constexpr,
    A2: tl.constexpr,
    RA2: tl.constexpr,
    RB2: tl.constexpr,
    END2: tl.constexpr,
    A3: tl.constexpr,
    RA3: tl.constexpr,
    RB3: tl.constexpr,
    END3: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    CA: tl.constexpr,
    RA: tl.constexpr,
    FA: tl.constexpr,
):
    """Grid (tiles of all groups); group i's end at ENDi."""
    tile = tl.program_id(0)
    if tile < END0:
        _group(
            tile,
            x0,
            low_dy0,
            dy0,
            low_x0,
            rows0,
            tiles0,
            flat,
            tokens,
            in0,
            rank0,
            scale0,
            x_row0,
            low_dy_row0,
            dy_row0,
            low_x_row0,
            A0,
            RA0,
            RB0,
            WIDE,
            ROWS,
            CA,
            RA,
            FA,
        )
    elif tile < END1:
        _group(
            tile - END0,
            x1,
            low_dy1,
            dy1,
            low_x1,
            rows1,
            tiles1,
            flat,
            tokens,
            in1,
            rank1,
            scale1,
            x_row1,
            low_dy_row1,
            dy_row1,
            low_x_row1,
            A1,
            RA1,
            RB1,
            WIDE,
            ROWS,
            CA,
            RA,
            FA,
        )
    elif tile < END2:
        _group(
            tile - END1,
            x2,
            low_dy2,
            dy2,
            low_x2,
            rows2,
            tiles2,
            flat,
            tokens,
            in2,
            rank2,
            scale2,
            x_row2,
            low_dy_row2,
            dy_row2,
            low_x_row2,
            A2,
            RA2,
            RB2,
            WIDE,
            ROWS,
            CA,
            RA,
            FA,
        )
    else:
        _group(
            tile - END2,
            x3,
            low_dy3,
            dy3,
            low_x3,
            rows3,
            tiles3,
            flat,
            tokens,
            in3,
            rank3,
            scale3,
            x_row3,
            low_dy_row3,
            dy_row3,
            low_x_row3,
            A3,
            RA3,
            RB3,
            WIDE,
            ROWS,
            CA,
            RA,
            FA,
        )


def gradients_of_groups(items, flat):
    """See plain_low.gradients_of_groups."""
    items = [item for item in items if item[4].parts]
    if not items:
        return
    if max(item[1].shape[1] for item in items) > MOST:
        plain_low.gradients_of_groups(items, flat)
        return
    tensors, sizes, end, most = [], [], 0, 16
    for number in range(4):
        x, low_dy, dy, low_x, table, scale = items[min(number, len(items) - 1)]
        rank, tiles_a = low_dy.shape[1], triton.cdiv(x.shape[1], COLUMNS)
        ranks = max(16, ceil_power(rank))
        most = max(most, ranks)
        end += tiles_a + len(table.tiles) if number < len(items) else 0
        tensors += [
            x,
            low_dy,
            dy,
            low_x,
            table.rows,
            table.tiles,
            x.shape[1],
            rank,
            scale,
            x.stride(0),
            low_dy.stride(0),
            dy.stride(0),
            low_x.stride(0),
        ]
        sizes += [tiles_a, ranks, max(16, ceil_power(table.most)), end]
    tables = [item[4] for item in items]
    aligns = (
        math.gcd(*(t.columns_align for t in tables)),
        math.gcd(*(t.rank_align for t in tables)),
        math.gcd(*(t.flat_align for t in tables)),
    )
    _several[(end,)](
        flat, items[0][0].shape[0], *tensors, *sizes, COLUMNS, ROWS, *aligns, num_warps=warps(most), num_stages=3
    )
