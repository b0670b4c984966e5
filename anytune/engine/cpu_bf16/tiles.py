"""What a product needs around it, each one compiled call: a tile of a linear, a low-rank part, a gradient."""

from __future__ import annotations

from numba import njit

from anytune.engine.numpy import compiled as c
from anytune.simd.pointers import floats

from .gemm import compiled, depth_of, pack_columns, pack_rows, product, round_rows
from .rowwise import kernel

_depth = njit(nogil=True, cache=True)(depth_of)


@compiled(8)
def low_rows(left, stride, rows, summed, packed, rank, scratch, target):
    """left [rows, summed] times a packed pair's [summed, rank], as bf16 columns of the same rows at `target`."""
    product(left, stride, packed, _depth(summed), scratch, 4 * rank, rows, rank, summed, 0)
    round_rows(scratch, 4 * rank, rows, rank, target, stride)


@njit(nogil=True, cache=True)
def _add_bias(y, y_stride, tokens, rows, bias):
    add = floats(bias, rows)
    for t in range(tokens):
        out = floats(y + t * y_stride, rows)
        for i in range(rows):
            out[i] += add[i]


@compiled(14)
def forward(tile, rows, features, b, before, rank, packed, x, x_stride, tokens, y, y_stride, bias, has_bias):
    """y [tokens, rows] = [x | h] [W | B]ᵀ (+ bias). tile: float32 [rows, features + before + rank], W already there;
    b: float32 [rows, rank] (rank 0: none); before: low-rank columns of other linears, which get zeros."""
    columns = features + before + rank
    if rank:
        for r in range(rows):
            at, pair = floats(tile + 4 * (r * columns + features), before + rank), floats(b + 4 * r * rank, rank)
            for i in range(before):
                at[i] = 0
            for i in range(rank):
                at[before + i] = pair[i]
    pack_columns(tile, 4 * columns, rows, columns, packed, _depth(columns), 0)
    product(x, x_stride, packed, _depth(columns), y, y_stride, tokens, rows, columns, 0)
    if has_bias:
        _add_bias(y, y_stride, tokens, rows, bias)


@compiled(15)
def forward_packed(
    panels, depth, rows, features, b, before, rank, scratch, x, x_stride, tokens, y, y_stride, bias, has_bias
):
    """As forward(), of W that lies packed; [0 | B], `before` columns of zeros and `rank` of B,
    is packed behind it first."""
    columns = before + rank
    if rank:
        for r in range(rows):
            at, pair = floats(scratch + 4 * r * columns, columns), floats(b + 4 * r * rank, rank)
            for i in range(before):
                at[i] = 0
            for i in range(rank):
                at[before + i] = pair[i]
        pack_columns(scratch, 4 * columns, rows, columns, panels, depth, features)
    product(x, x_stride, panels, depth, y, y_stride, tokens, rows, features + columns, 0)
    if has_bias:
        _add_bias(y, y_stride, tokens, rows, bias)


@compiled(12)
def backward(tile, height, columns, downs, downs_stride, rank, packed, dy, dy_stride, tokens, dx, dx_stride):
    """dx [tokens, columns] = [dy | g] [W ; s A]. tile: float32 [height + rank, columns], W already there; downs: the
    columns' part of float32 rows s A (rank 0: none)."""
    for r in range(rank):
        to, source = floats(tile + 4 * columns * (height + r), columns), floats(downs + downs_stride * r, columns)
        for i in range(columns):
            to[i] = source[i]
    depth = _depth(height + rank)
    pack_rows(tile, 4 * columns, columns, height + rank, 4, packed, depth, 0)
    product(dy, dy_stride, packed, depth, dx, dx_stride, tokens, columns, height + rank, 0)


@compiled(12)
def backward_packed(panels, depth, height, columns, downs, downs_stride, rank, dy, dy_stride, tokens, dx, dx_stride):
    """As backward(), of W that lies packed; s A is packed behind it first."""
    if rank:
        pack_rows(downs, downs_stride, columns, rank, 4, panels, depth, height)
    product(dy, dy_stride, panels, depth, dx, dx_stride, tokens, columns, height + rank, 0)


@kernel("fiiiiiiiii")
def add_product(scale, a, a_stride, packed, rows, columns, summed, piece, target, target_stride):
    """target [rows, columns] += scale * (a packed), float32; piece: scratch of that size."""
    product(a, a_stride, packed, _depth(summed), piece, 4 * columns, rows, columns, summed, 0)
    c.add_scaled(piece, columns, rows, columns, scale, target, target_stride // 4)
