"""Heads whose columns are split, joined, cut and filled, and latent attention's, which are made of those."""

from __future__ import annotations

import numpy as np

from anytune.engine.shapes import LatentHeads

from .arrays import Array, cuts, row_cuts
from .device import ALIGN
from .kernels import heads as _kernels
from .trained import Trained
from .weights import Weight


def _move(e, x: Array | None, y: Array, heads: int, width: int, source: tuple = (0, 0), target: tuple = (0, 0)) -> None:
    """`width` columns of each head from x (None: zeros) to y; source, target: (elements of a head, first column)."""
    if not width:
        return
    strides = y.stride, *target, 0 if x is None else x.stride, *source
    for a, b in row_cuts(e.device.max_binding, y, x):
        e.commands.run(
            _kernels.move(x is None),
            [*([] if x is None else [x.bind(a, b)]), y.bind(a, b)],
            (heads, width, *strides),
            e.grid(heads * width, b - a),
        )


def split_heads(e, x: Array, heads: int, first: int = 0) -> tuple[Array, Array]:
    each = x.columns // heads
    one = first or each // 2
    made = e.columns(x.rows, heads * one, heads * (each - one))
    _move(e, x, made[0], heads, one, (each, 0), (one, 0))
    _move(e, x, made[1], heads, each - one, (each, one), (each - one, 0))
    return made


def join_heads(e, first: Array, second: Array, heads: int) -> Array:
    one, two = first.columns // heads, second.columns // heads
    x = e.array(first.rows, first.columns + second.columns)
    _move(e, first, x, heads, one, (one, 0), (one + two, 0))
    _move(e, second, x, heads, two, (two, 0), (one + two, one))
    return x


def resize_heads(e, x: Array, heads: int, size: int) -> Array:
    out, each = e.array(x.rows, heads * size), x.columns // heads
    _move(e, x, out, heads, min(size, each), (each, 0), (size, 0))
    _move(e, None, out, heads, max(0, size - each), target=(size, each))
    return out


def latent_heads(e, q: Array, kv: Array, shared: Array, shape: LatentHeads) -> tuple[Array, Array, Array]:
    s, both = shape, shape.nope + shape.value
    queries, keys, values = made = e.columns(q.rows, *[s.heads * s.size] * 3)
    _move(e, q, queries, s.heads, s.rope, (s.keys, s.nope), (s.size, 0))
    _move(e, q, queries, s.heads, s.nope, (s.keys, 0), (s.size, s.rope))
    _move(e, shared, keys, s.heads, s.rope, (0, 0), (s.size, 0))
    _move(e, kv, keys, s.heads, s.nope, (both, 0), (s.size, s.rope))
    _move(e, kv, values, s.heads, s.value, (both, s.nope), (s.size, 0))
    for x, used in ((queries, s.keys), (keys, s.keys), (values, s.value)):
        _move(e, None, x, s.heads, s.size - used, target=(s.size, used))
    return made


def latent_heads_backward(e, dq: Array, dk: Array, dv: Array, shape: LatentHeads) -> tuple[Array, Array, Array]:
    s, both = shape, shape.nope + shape.value
    given, spread, shared = made = e.columns(dq.rows, s.heads * s.keys, s.heads * both, s.rope)
    _move(e, dq, given, s.heads, s.rope, (s.size, 0), (s.keys, s.nope))
    _move(e, dq, given, s.heads, s.nope, (s.size, s.rope), (s.keys, 0))
    _move(e, dk, spread, s.heads, s.nope, (s.size, s.rope), (both, 0))
    _move(e, dv, spread, s.heads, s.value, (s.size, 0), (both, s.nope))
    for a, b in row_cuts(e.device.max_binding, dk, shared):
        e.commands.run(
            _kernels.total(),
            [dk.bind(a, b), shared.bind(a, b)],
            (s.heads, s.rope, dk.stride, s.size, shared.stride),
            e.grid(s.rope, b - a),
        )
    return made


def latent_matrix(e, k: Array, v: Array) -> Array:
    """Made on the host, once."""
    k, v = (e.host(Array(x.buffer, x.at, (x.size,), x.size)).reshape(x.shape) for x in (k, v))
    return e.vector(np.concatenate([k.swapaxes(1, 2), v], 1).reshape(-1, k.shape[1]))


def head_product(e, x: Array, matrix: Weight, heads: int, low: int, high: int, back: bool) -> Array:
    """Blocks are dequantized first, those rows alone."""
    each, columns, rows = matrix.out_features // heads, matrix.in_features, high - low
    if isinstance(matrix, Trained):
        m, first, apart = matrix.values, low, each
    else:
        wanted = (np.arange(heads)[:, None] * each + np.arange(low, high)).reshape(-1)
        m, first, apart = e.embed(e.integers(wanted), matrix, 1.0), 0, rows
    n, k = (columns, rows) if back else (rows, columns)
    out = e.array(x.rows, heads * n)
    for a, b in row_cuts(e.device.max_binding, x, out):
        for one, last in cuts(heads, max(1, (e.device.max_binding - ALIGN) // (4 * apart * m.stride))):
            held = m.bind(one * apart + first, (last - 1) * apart + first + rows)
            e.commands.run(
                _kernels.product(back),
                [x.bind(a, b), held, out.bind(a, b)],
                ((last - one), n, k, one, x.stride, out.stride, held.shift, apart * m.stride, m.stride),
                e.grid((last - one) * n, b - a),
                2.0 * (b - a) * (last - one) * n * k,
            )
    return out
