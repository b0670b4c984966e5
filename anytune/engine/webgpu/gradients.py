"""Gradients of what is not low-rank: matrices, biases, norms' gains and the embedding table."""

from __future__ import annotations

from .arrays import Array, bound, cuts, row_cuts
from .device import ALIGN
from .kernels import gradients as _kernels
from .kernels.columns import COLUMNS
from .trained import Trained


def matrix_gradient(e, dy: Array, x: Array, weight: Trained) -> None:
    """dW += dyᵀ x; dy [T, out], x [T, in]."""
    most, n = e.most_columns(x.rows, x.columns), x.columns
    for low, high, held in rows_of(e, weight.gradient, most):
        for a, b in row_cuts(e.device.max_binding, dy, x):
            tile = e.tile_product(False, b - a, n, high - low)[0]
            e.commands.run(
                _kernels.outer(tile),
                [dy.bind(a, b), x.bind(a, b), held],
                (b - a, high - low, n, dy.stride, low, x.stride, held.shift),
                (-(-n // tile.n), -(-(high - low) // tile.m)),
                2.0 * (b - a) * (high - low) * n,
            )


def rows_of(e, matrix: Array, most: int = 1 << 30):
    """Runs of at most `most` rows of a contiguous matrix that fit a binding: (low, high, binding)."""
    size = 4 * matrix.columns
    room = (e.device.max_binding - ALIGN) // size
    for low, high in cuts(matrix.rows, max(1, min(room, most)), 64 if min(room, most) >= 64 else 1):
        first = 4 * matrix.at + low * size
        yield low, high, bound(matrix.buffer, first, first + (high - low) * size)


def _column_sums(e, what: str, arrays: list[Array], extra: list[Array], heads: int, into: Array) -> None:
    """into += the sum over rows and heads; arrays: x, or x, dy, r."""
    strides = [arr.stride for arr in arrays[1:]] or [0, 0]
    for a, b in row_cuts(e.device.max_binding, *arrays):
        e.commands.run(
            _kernels.column_sums(what),
            [*(z.bind(a, b) for z in arrays), *extra, into],
            (b - a, heads, (b - a) * heads, into.size, arrays[0].stride, 0, *strides, into.bind().shift, 1),
            (-(-into.size // COLUMNS), 1),
            3.0 * (b - a) * heads * into.size,
        )


def bias_gradient(e, dy: Array, into: Array) -> None:
    """into += the sum of dy's rows."""
    _column_sums(e, "values", [dy], [], 1, into)


def gain_gradient(e, dy: Array, x: Array, eps: float, into: Array) -> None:
    """into += the sum over rows and heads of dy * x / rms(x)."""
    heads = x.columns // into.size
    r = e.array(x.rows, heads)
    for a, b in row_cuts(e.device.max_binding, x, r):
        e.commands.run(
            _kernels.inverse_rms(),
            [x.bind(a, b), r.bind(a, b)],
            (into.size, x.stride, r.stride, eps),
            (heads, b - a),
            2.0 * (b - a) * x.columns,
        )
    _column_sums(e, "gains", [x, dy, r], [], heads, into)


def embed_backward(e, dx: Array, ids: Array, scale: float, into: Array) -> None:
    """into[ids] += scale * dx: whoever has a token's first place adds up all of its places."""
    link = e.flat(dx.rows, max(dx.rows, e.capacity))
    for a, b in row_cuts(e.device.max_binding, dx):
        held, chain = ids.bind(), link[: b - a]
        e.commands.run(
            _kernels.links(), [held, chain], (b - a, held.shift + a), (-(-(b - a) // 256),), 1.0 * (b - a) ** 2
        )
        for low, high, rows in rows_of(e, into):
            e.commands.run(
                _kernels.scatter(),
                [dx.bind(a, b), held, chain, rows],
                (b - a, dx.columns, dx.stride, held.shift + a, low, high, rows.shift, scale),
                e.grid(dx.columns, b - a),
                2.0 * (b - a) * dx.columns,
            )
