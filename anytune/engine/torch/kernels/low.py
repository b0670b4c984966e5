"""Skinny products of LoRA: x · w for a few columns, and the gradients of all pairs of a group.

Both sum over a long axis and have little output, so programs share that axis; see shares.py.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .entry import Entry
from .. import plain_low
from ..plain_low import COLUMNS, GradientTable
from .shares import ceil_power, collect, deposit, finish, fit, partials, share

MOST = 256  # ranks beside each other that a program holds; more are matrix products proper, which cuBLAS does
SMALL = 512  # tokens up to which `low` runs as FEW says
# ROWS, BLOCK: of a program's tile of x; SHARE: the least length of a share; PROGRAMS: at most (an H100 has 132
# multiprocessors)
FEW = dict(ROWS=16, BLOCK=128, SHARE=256, PROGRAMS=264, WARPS=4, STAGES=3)
MANY = dict(ROWS=64, BLOCK=128, SHARE=1024, PROGRAMS=264, WARPS=4, STAGES=4)
GRADIENTS = dict(STEP=128, SHARE=512, PROGRAMS=264, STAGES=3)  # STEP: rows at a time


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
def _tile(
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
        _tile(
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
        _tile(
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
