"""What goes row by row: the embedding, sums, norms; rows that are picked, put back or put together."""

from __future__ import annotations

import numpy as np

from .arrays import Array, Sum, lines, row_cuts
from .kernel import Kernel
from .kernels import lookup
from .kernels import rows as _kernels
from .weights import Part, Weight


def split(e, x: Array, *widths: int) -> tuple[Array, ...]:
    """Views of parts that begin a line, else copies."""
    made, at = [], 0
    for width in widths:
        if at == lines(at):
            made.append(x.part(at, at + width))
        else:
            made.append(e.array(x.rows, width))
            _copy(e, x, made[-1], width, at, 0)
        at += width
    return tuple(made)


def join(e, parts: tuple[Array, ...]) -> Array:
    ends = np.cumsum([part.columns for part in parts]).tolist()
    return _side_by_side(e, parts, [0, *ends[:-1]], ends[-1])


def joined(e, parts: tuple[Array, ...], part: Part) -> Array:
    """Outputs of the linears of a part as one array."""
    return _side_by_side(e, parts, part.bounds, part.width)


def _side_by_side(e, parts: tuple[Array, ...], bounds: list[int], width: int) -> Array:
    """A view if the parts lie at their bounds already, else a copy."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    if all(
        p.buffer is first.buffer and p.stride == first.stride and p.at == first.at + at for p, at in zip(parts, bounds)
    ):
        return first.part(0, width)
    out = e.array(first.rows, width)
    for p, at in zip(parts, bounds):
        _copy(e, p, out, p.columns, 0, at)
    return out


def _copy(e, x: Array, out: Array, count: int, source: int, target: int) -> None:
    """`count` columns of x from column `source` on to `target` of out."""
    for a, b in row_cuts(e.device.max_binding, x, out):
        e.commands.run(
            _kernels.copy(),
            [x.bind(a, b), out.bind(a, b)],
            (count, x.stride, out.stride, source, target),
            e.grid(count, b - a),
        )


def embed(e, ids: Array, table: Weight, scale: float) -> Array:
    out = e.array(ids.size, table.in_features)
    for low, high, weights, base in table.pieces(1, 1 << 30):
        for a, b in row_cuts(e.device.max_binding, out):
            held = ids.bind()
            e.commands.run(
                lookup.embed(table.block),
                [weights, held, out.bind(a, b)],
                (base, table.row_bytes, out.columns, out.stride, held.shift + a, low, high, scale),
                (-(-out.columns // 1024), b - a),
                4.0 * (b - a) * out.columns,
            )
    return out


def gather(e, x: Array, rows: Array) -> Array:
    if rows is e.loss_rows:
        e.trimmed = True
    out = e.array(rows.size, x.columns)
    for low, high in row_cuts(e.device.max_binding, x):
        for a, b in row_cuts(e.device.max_binding, out):
            source, held = x.bind(low, high), rows.bind()
            e.commands.run(
                _kernels.gather(),
                [source, held, out.bind(a, b)],
                (x.columns, x.stride, out.stride, source.shift, held.shift + a, low, high, x.rows - 1),
                e.grid(x.columns, b - a),
            )
    return out


def scatter(e, y: Array, rows: Array, tokens: int) -> Array:
    out, e.trimmed = e.array(tokens, y.columns), False
    by_element(e, _kernels.fill(), out, numbers=(0.0,))
    for low, high in row_cuts(e.device.max_binding, out):
        for a, b in row_cuts(e.device.max_binding, y):
            held = rows.bind()
            e.commands.run(
                _kernels.scatter(),
                [y.bind(a, b), held, out.bind(low, high)],
                (y.columns, y.stride, out.stride, held.shift + a, low, high),
                e.grid(y.columns, b - a),
            )
    return out


def add(e, x: Array, y: Array) -> Array:
    """Waits for the norm that follows, so that sum and norm are one pass; see Sum."""
    return Sum(x, y, lambda total: _add(e, total))


def _add(e, total: Sum) -> None:
    x, y = total.take(), Array(total.buffer, total.at, total.shape, total.stride)
    by_element(e, _kernels.add(), x, y)


def scale(e, x: Array, factor: float | Array) -> Array:
    out = e.array(*x.shape)
    if isinstance(factor, Array):
        by_element(e, _kernels.scale(True), x, factor, out)
    else:
        by_element(e, _kernels.scale(False), x, out, numbers=(factor,))
    return out


def rms_norm(e, x: Array, gain: Array, eps: float) -> Array:
    out, more = e.array(*x.shape), x.take() if isinstance(x, Sum) else None
    for a, b in row_cuts(e.device.max_binding, x, more, out):
        arrays = [x.bind(a, b), gain, *([] if more is None else [more.bind(a, b)]), out.bind(a, b)]
        e.commands.run(
            _kernels.rms_norm(more is not None),
            arrays,
            (x.columns, x.stride, out.stride, eps, *([] if more is None else [more.stride])),
            (b - a,),
            6.0 * (b - a) * x.columns,
        )
    return out


def rms_norm_backward(e, dy: Array, x: Array, gain: Array, eps: float, residual: Array | None = None) -> Array:
    out, adds = e.array(*x.shape), residual is not None
    for a, b in row_cuts(e.device.max_binding, dy, x, residual, out):
        e.commands.run(
            _kernels.rms_norm_backward(adds),
            [dy.bind(a, b), x.bind(a, b), gain, *([residual.bind(a, b)] if adds else []), out.bind(a, b)],
            (x.columns, dy.stride, x.stride, out.stride, eps, *([residual.stride] if adds else [])),
            (b - a,),
            12.0 * (b - a) * x.columns,
        )
    return out


def by_element(e, kernel: Kernel, *arrays: Array, numbers: tuple = (), flops: float = 0.0) -> None:
    """A kernel with one invocation per element, whose parameters are the first array's columns, every array's stride
    and `numbers`. flops: of an element."""
    n = arrays[0].columns
    for a, b in row_cuts(e.device.max_binding, *arrays):
        parameters = n, *(x.stride for x in arrays), *numbers
        e.commands.run(kernel, [x.bind(a, b) for x in arrays], parameters, e.grid(n, b - a), flops * (b - a) * n)
