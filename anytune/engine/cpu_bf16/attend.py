"""Attention of one task, compiled: a run of queries of one example with the query heads of one key head.

Keys and values are packed once for the task; queries go through in tiles of TILE, one head after the other, and a tile
meets only the keys up to its last query. Its scores are small enough for the core's own cache. They alone are products
of float32 operands: an exponential makes a rounding error of a large score into a large one of a probability, and this
one product would lose more of the gradients' accuracy than all linears together. Each part of `scratch` is
an address; sizes() and sizes_backward() say how large they are, in the same order.
"""

from __future__ import annotations

from numba import njit

from anytune.simd.pointers import floats

from .gemm import (
    SPARE,
    depth_of,
    pack_columns,
    pack_rows,
    pack_single,
    packed_words,
    product,
    product_single,
    round_rows,
    row_bytes,
    turn,
)
from .rowwise import kernel, scale_rows, softmax, softmax_backward

TILE = 64  # queries
_inline = njit(nogil=True, cache=True)
_depth, _bytes = _inline(depth_of), _inline(row_bytes)


def _left(columns: int) -> int:
    """Words of a tile of queries as bf16 rows."""
    return (TILE + SPARE) * row_bytes(columns) // 4


def _wide(keys: int) -> int:
    return -(-keys // 16) * 16


@_inline
def _copied(source, stride, rows, columns, target):
    """Rows of float32 into scratch, one behind the other."""
    for r in range(rows):
        to, row = floats(target + 4 * r * columns, columns), floats(source + r * stride, columns)
        for i in range(columns):
            to[i] = row[i]


@_inline
def _centred(source, stride, rows, columns, target):
    """Rows of float32 less their mean, one behind the other; the mean is behind the last."""
    mean = floats(target + 4 * rows * columns, columns)
    for i in range(columns):
        mean[i] = 0
    for r in range(rows):
        row = floats(source + r * stride, columns)
        for i in range(columns):
            mean[i] += row[i]
    for i in range(columns):
        mean[i] /= rows
    for r in range(rows):
        to, row = floats(target + 4 * r * columns, columns), floats(source + r * stride, columns)
        for i in range(columns):
            to[i] = row[i] - mean[i]


def sizes(keys: int, size: int) -> list[int]:
    """Words of scratch that a task with so many keys takes."""
    return [
        _wide(size) * _wide(keys),
        packed_words(keys, size),
        (TILE + SPARE) * size,
        (TILE + SPARE) * _wide(keys),
        _left(keys),
        TILE,
    ]


def sizes_backward(keys: int, size: int) -> list[int]:
    """As sizes(), for the backward."""
    turned = (_wide(keys) + SPARE) * row_bytes(TILE) // 4
    return [
        _wide(size) * _wide(keys),
        packed_words(keys, size),
        packed_words(size, keys),
        (TILE + SPARE) * size,
        _left(size),
        _left(size),
        (TILE + SPARE) * _wide(keys),
        TILE * _wide(keys),
        _left(keys),
        _left(keys),
        turned,
        packed_words(TILE, size),
        (keys + 1) * size,
    ]


@kernel("fiiiiiiiiiiiiiiiiiiiiii")
def forward(
    scale,
    q,
    q_stride,
    k,
    k_stride,
    v,
    v_stride,
    out,
    out_stride,
    lse,
    lse_stride,
    low,
    high,
    first,
    group,
    size,
    window,
    packed_k,
    packed_v,
    x,
    s,
    p,
    inverse,
):
    """out and lse [group, tokens] of queries low…high against keys first…high. q, k, v, out: row 0 of the stream, at
    the columns of the task's heads."""
    keys = high - first
    wide = (keys + 15) // 16 * 16
    depth, p_stride = _depth(keys), _bytes(keys)
    pack_single(k + first * k_stride, k_stride, keys, size, packed_k)
    pack_rows(v + first * v_stride, v_stride, size, keys, 4, packed_v, depth, 0)
    for head in range(group):
        shift = 4 * head * size
        for begin in range(low, high, TILE):
            rows, seen = min(TILE, high - begin), min(TILE + begin, high) - first
            _copied(q + begin * q_stride + shift, q_stride, rows, size, x)
            product_single(x, 4 * size, packed_k, s, 4 * wide, rows, min((seen + 31) // 32 * 32, wide), size)
            softmax(
                scale,
                s,
                4 * wide,
                rows,
                seen,
                begin - first,
                window,
                lse + head * lse_stride + 4 * begin,
                inverse,
                p,
                p_stride,
            )
            y = out + begin * out_stride + shift
            product(p, p_stride, packed_v, depth, y, out_stride, rows, size, seen, 0)
            scale_rows(y, out_stride, rows, size, inverse)


@kernel("fiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiii")
def backward(
    scale,
    q,
    q_stride,
    k,
    k_stride,
    v,
    v_stride,
    dout,
    dout_stride,
    lse,
    lse_stride,
    dq,
    dq_stride,
    dk,
    dk_stride,
    dv,
    dv_stride,
    low,
    high,
    first,
    group,
    size,
    window,
    packed_k,
    rows_k,
    packed_v,
    q_copy,
    x,
    dx,
    s,
    dp,
    p,
    ds,
    turned,
    right,
    centred,
):
    """dq of queries low…high, and what they add to dk and dv of keys first…high."""
    keys = high - first
    wide = (keys + 15) // 16 * 16
    columns, depth, short = _depth(size), _depth(keys), _depth(TILE)
    x_stride, p_stride, t_stride = _bytes(size), _bytes(keys), _bytes(TILE)
    pack_single(k + first * k_stride, k_stride, keys, size, packed_k)
    # Probabilities sum to 1 and the gradients of a row's scores to 0, so the means of v and k drop out: they often are
    # most of it, and would be most of the rounding errors.
    _centred(v + first * v_stride, v_stride, keys, size, centred)
    pack_columns(centred, 4 * size, keys, size, packed_v, _depth(size), 0)
    _centred(k + first * k_stride, k_stride, keys, size, centred)
    pack_rows(centred, 4 * size, size, keys, 4, rows_k, depth, 0)
    for head in range(group):
        shift = 4 * head * size
        for begin in range(low, high, TILE):
            rows, seen = min(TILE, high - begin), min(TILE + begin, high) - first
            seen_wide = min((seen + 31) // 32 * 32, wide)  # whole panels
            queries, douts = q + begin * q_stride + shift, dout + begin * dout_stride + shift
            round_rows(queries, q_stride, rows, size, x, x_stride)
            round_rows(douts, dout_stride, rows, size, dx, x_stride)
            _copied(queries, q_stride, rows, size, q_copy)
            product_single(q_copy, 4 * size, packed_k, s, 4 * wide, rows, seen_wide, size)
            product(dx, x_stride, packed_v, columns, dp, 4 * wide, rows, seen_wide, size, 0)
            softmax_backward(
                scale,
                s,
                dp,
                4 * wide,
                rows,
                seen,
                begin - first,
                window,
                lse + head * lse_stride + 4 * begin,
                p,
                ds,
                p_stride,
            )
            product(ds, p_stride, rows_k, depth, dq + begin * dq_stride + shift, dq_stride, rows, size, seen, 0)
            # the sums over queries: dV += Pᵀ dO and dK += dSᵀ Q
            turn(p, p_stride, rows, seen, 2, turned, t_stride)
            pack_rows(dx, x_stride, size, rows, 2, right, short, 0)
            product(turned, t_stride, right, short, dv + first * dv_stride, dv_stride, seen, size, rows, 1)
            turn(ds, p_stride, rows, seen, 2, turned, t_stride)
            pack_rows(x, x_stride, size, rows, 2, right, short, 0)
            product(turned, t_stride, right, short, dk + first * dk_stride, dk_stride, seen, size, rows, 1)
