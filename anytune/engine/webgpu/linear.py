"""y = W x + b + s B A x for linears that share an input, and its backward: tiled products straight from the blocks."""

from __future__ import annotations

from .arrays import Array, lines, row_cuts
from .gradients import bias_gradient, matrix_gradient
from .groups import Group
from .kernels import gemm as _gemm
from .low import add_gradients, dropout, input_gradient, low_product, low_products
from .weights import FAR, LoraPair, Part, pair_bounds


def linear(e, x: Array, group: Group) -> tuple[Array, ...]:
    """x: [T, in] -> one [T, out] for each linear of the group, columns of one buffer."""
    y = e.array(x.rows, group.width)
    forward(e, x, group, y)
    return group.split(y)


def forward(e, x: Array, group: Group, y: Array) -> None:
    """As linear(), into y [T, group.width]."""
    source, bias = dropout(e, x, group), group.bias()
    for part in group.parts():
        pair = part.stacked()
        low = None if pair is None else low_product(e, source, pair)
        for piece in part.pieces(e.device.max_binding, e.most_columns(x.rows, group.in_features)):
            product(e, x, part, piece, True, y, False, pair, low, bias)
        del low  # its memory serves the next part


def product(
    e,
    x: Array,
    part: Part,
    piece: tuple,
    forward: bool,
    y: Array,
    adds: bool,
    pair: LoraPair | None = None,
    low: Array | None = None,
    bias: Array | None = None,
) -> None:
    """y (+)= x Wᵀ (forward) or x W, with W a piece of a part's weights, and with its pair's product and bias.

    piece: of part.pieces(); its rows are columns of y in the forward, of x in the backward.
    """
    first, last, weights, base = piece
    n, k = (last - first, x.columns) if forward else (y.columns, last - first)
    x0, y0 = (0, part.low + first) if forward else (first, 0)
    tail = low is not None
    for a, b in row_cuts(e.device.max_binding, x, y, low):
        m = b - a
        tile, slices, step = e.tile_product(forward, m, n, k)
        kernel = _gemm.gemm(part.block, forward, tile, tail, bias is not None)
        numbers = [base, part.row_bytes, m, n, k, step, x.stride // 4, x0 // 4]
        target, width = y.bind(a, b), lines(n)
        if slices > 1:
            part_sums = e.scratch(slices * m, width)
            numbers += [width // 4, 0, m * width // 4, 0]
            target = part_sums.bind()
        else:
            numbers += [y.stride // 4, y0 // 4, 0, int(adds)]
        arrays = [x.bind(a, b), weights, target]
        if tail:
            matrix = pair.b if forward else pair.a
            held = matrix.bind()
            arrays += [low.bind(a, b), held]
            if forward:
                n1, n2 = pair_bounds(part, first)
                numbers += [part.rank, low.stride, 0, n1, n2, held.shift + first * matrix.stride, matrix.stride, 1]
            else:
                numbers += [pair.a.shape[0], low.stride, 0, FAR, FAR, held.shift, 1, matrix.stride]
        if bias is not None:
            arrays.append(bias.bind())
            numbers.append(y0)
        e.commands.run(kernel, arrays, tuple(numbers), (-(-n // tile.n), -(-m // tile.m), slices), 2.0 * m * n * k)
        if slices > 1:
            add_slices(e, part_sums, slices, y, a, b, y0, n, int(adds))


def add_slices(e, parts: Array, slices: int, y: Array, low: int, high: int, y0: int, n: int, adds: int) -> None:
    """y[low…high, y0…y0+n] (+)= the sum of `slices` slices, stacked in parts [slices * rows, at least n]."""
    rows, width = high - low, parts.stride
    e.commands.run(
        _gemm.split_sum(),
        [parts, y.bind(low, high)],
        (-(-n // 4), slices, width // 4, rows * width // 4, y.stride // 4, y0 // 4, adds),
        (-(-n // 1024), rows),
        1.0 * rows * n * slices,
    )


def linear_backward(e, dys: tuple[Array, ...], x: Array, group: Group, need_dx: bool = True) -> Array | None:
    """Adds the gradients of the group's pairs, matrices and biases; returns dx [T, in], or None if it is not needed."""
    dx = e.array(x.rows, group.in_features) if need_dx else None
    backward(e, dys, x, group, dx)
    return dx


def backward(e, dys: tuple[Array, ...], x: Array, group: Group, dx: Array | None) -> None:
    """As linear_backward(), into dx."""
    source, begun, number = dropout(e, x, group), False, 0
    for part in group.parts():
        dy = e.joined(dys[number : number + len(part.weights)], part)
        number += len(part.weights)
        pair, low, dy_low = part.stacked(), None, None
        if pair is not None:
            low, dy_low = low_products(e, source, dy, part, pair)
        if dx is not None:
            apart = source is not x and pair is not None
            ride = None if apart else dy_low
            for piece in part.pieces(e.device.max_binding, e.most_columns(x.rows, group.in_features)):
                product(e, dy, part, piece, False, dx, begun, pair, ride)
                begun, ride = True, None
            if apart:
                input_gradient(e, dy_low, pair, group, dx)
        if pair is not None and pair.grad_a is not None:
            add_gradients(e, source, dy_low, dy, low, part, pair)
        if part.weights[0].gradient is not None:  # such a part is one linear
            matrix_gradient(e, dy, x, part.weights[0])
        del dy, low, dy_low  # their memory serves the next part
    for dy, gradient in zip(dys, group.bias_gradients):
        if gradient is not None:
            bias_gradient(e, dy, gradient)
