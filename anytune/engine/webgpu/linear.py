"""y = W x + b + s B A x for linears that share an input, and its backward: tiled products straight from the blocks."""

from __future__ import annotations

from .arrays import Array, lines, row_cuts
from .gradients import bias_gradient, matrix_gradient
from .groups import Group
from .kernels import gemm as _gemm
from .kernels import low as _low
from .kernels import rows as _rows
from .weights import Part, LoraPair, pair_bounds

FAR = 0xFFFFFFFF


def linear(e, x: Array, group: Group) -> tuple[Array, ...]:
    """x: [T, in] -> one [T, out] for each linear of the group, columns of one buffer."""
    y = e.array(x.rows, group.width)
    forward(e, x, group, y)
    return group.split(y)


def forward(e, x: Array, group: Group, y: Array) -> None:
    """As linear(), into y [T, group.width]."""
    source = dropped(e, x, group)
    bias = group.bias()
    for part in group.parts():
        pair = part.stacked()
        low = None if pair is None else low_product(e, source, pair)
        most = e.most_columns(x.rows, group.in_features)
        for first, last, weights, base in part.pieces(e.device.max_binding, most):
            product(
                e,
                x,
                0,
                weights,
                base,
                part,
                True,
                first,
                last - first,
                group.in_features,
                y,
                part.low + first,
                False,
                pair,
                low,
                bias,
            )
        del low  # its memory serves the next part


def low_product(e, x: Array, pair: LoraPair) -> Array:
    """s x Aᵀ: [T, all ranks]."""
    out = e.array(x.rows, pair.rank)
    for a, b in row_cuts(e.device.max_binding, x, out):
        held = pair.a.bind()
        e.commands.run(
            _low.low(),
            [x.bind(a, b), held, out.bind(a, b)],
            (b - a, pair.scale, x.columns, pair.rank, x.stride, out.stride, held.shift, 1, pair.a.stride),
            (-(-(b - a) // _low.TOKENS), -(-pair.rank // _low.RANKS)),
            2.0 * (b - a) * x.columns * pair.rank,
        )
    return out


def low_products(e, x: Array, dy: Array, part: Part, pair: LoraPair) -> tuple[Array, Array]:
    """(s x Aᵀ, s dy B), [T, all ranks] each; each linear's columns of dy with its own B."""
    rank, bounds = part.rank, [*part.bounds, 0, 0][:4]
    low, dy_low = e.array(x.rows, pair.rank), e.array(x.rows, pair.rank)
    for a, b in row_cuts(e.device.max_binding, x, dy, low, dy_low):
        down, up = pair.a.bind(), pair.b.bind()
        e.commands.run(
            _low.both(),
            [x.bind(a, b), down, dy.bind(a, b), up, low.bind(a, b), dy_low.bind(a, b)],
            (
                b - a,
                pair.scale,
                x.columns,
                pair.rank,
                x.stride,
                low.stride,
                down.shift,
                1,
                pair.a.stride,
                *bounds,
                rank,
                dy.stride,
                dy_low.stride,
                up.shift,
                pair.b.stride,
                1,
            ),
            (-(-(b - a) // _low.TOKENS), -(-pair.rank // _low.RANKS), 1 + len(part.weights)),
            2.0 * (b - a) * (x.columns + dy.columns) * pair.rank,
        )
    return low, dy_low


def product(
    e,
    x: Array,
    x0: int,
    weights,
    base: int,
    part: Part,
    forward: bool,
    first: int,
    n: int,
    k: int,
    y: Array,
    y0: int,
    adds: bool,
    pair: LoraPair | None,
    low: Array | None,
    bias: Array | None,
) -> None:
    """y[:, y0…y0+n] (+)= x[:, x0…x0+k] times a piece of a part's weights, with its pair's product and bias.

    weights: the piece as a binding, `base` bytes before its first row. first: the column of the part (forward) or the
    row (backward) that the piece begins with.
    """
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
    """y[low…high, y0…y0+n] (+)= the sum of `slices` slices,
    one under the other in parts [slices * rows, n and more]."""
    rows, width = high - low, parts.stride
    e.commands.run(
        _gemm.split_sum(),
        [parts, y.bind(low, high)],
        (-(-n // 4), slices, width // 4, rows * width // 4, y.stride // 4, y0 // 4, adds),
        (-(-n // 1024), rows),
        1.0 * rows * n * slices,
    )


def dropped(e, x: Array, group: Group) -> Array:
    """x with dropout's mask and its 1/(1-p), or x itself."""
    if not (group.dropout and e.training and group.rank):
        return x
    out = e.array(x.rows, x.columns)
    mask(e, x, group, out, False)
    return out


def mask(e, x: Array, group: Group, out: Array, adds: bool) -> None:
    for a, b in row_cuts(e.device.max_binding, x, out):
        key = e.key.bind()
        e.commands.run(
            _rows.dropout(adds),
            [x.bind(a, b), key, out.bind(a, b)],
            (x.columns, x.stride, out.stride, key.shift, group.number, a, group.dropout),
            e.grid(x.columns, b - a),
        )


def linear_backward(e, dys: tuple[Array, ...], x: Array, group: Group, need_dx: bool = True) -> Array | None:
    """Adds the gradients of the group's pairs, matrices and biases; returns dx [T, in], or None if it is not needed."""
    dx = e.array(x.rows, group.in_features) if need_dx else None
    backward(e, dys, x, group, dx)
    return dx


def backward(e, dys: tuple[Array, ...], x: Array, group: Group, dx: Array | None) -> None:
    """As linear_backward(), into dx."""
    source, drops, begun, number = dropped(e, x, group), bool(group.dropout and e.training), False, 0
    for part in group.parts():
        dy = e.joined(dys[number : number + len(part.weights)], part)
        number += len(part.weights)
        pair, low, dy_low = part.stacked(), None, None
        if pair is not None:
            low, dy_low = low_products(e, source, dy, part, pair)
        if dx is not None:
            apart = drops and pair is not None
            most = e.most_columns(x.rows, group.in_features)
            ride = None if apart else dy_low
            for first, last, weights, base in part.pieces(e.device.max_binding, most):
                product(
                    e,
                    dy,
                    first,
                    weights,
                    base,
                    part,
                    False,
                    first,
                    group.in_features,
                    last - first,
                    dx,
                    0,
                    begun,
                    pair,
                    ride,
                    None,
                )
                begun, ride = True, None
            if apart:
                through(e, dy_low, pair, group, dx)
        if pair is not None and pair.grad_a is not None:
            add_gradients(e, source, dy_low, dy, low, part, pair)
        if part.weights[0].gradient is not None:  # such a part is one linear
            matrix_gradient(e, dy, x, part.weights[0])
        del dy, low, dy_low  # their memory serves the next part
    for dy, gradient in zip(dys, group.bias_gradients):
        if gradient is not None:
            bias_gradient(e, dy, gradient)


def through(e, dy_low: Array, pair: LoraPair, group: Group, dx: Array) -> None:
    """dx += mask (dy_low A): the low-rank part of dx passes dropout's mask on its own."""
    out = e.array(*dx.shape)
    for a, b in row_cuts(e.device.max_binding, dy_low, out):
        held = pair.a.bind()
        tile = e.tile_product(False, b - a, dx.columns, 1)[0]
        e.commands.run(
            _gemm.gemm("F32", False, tile, True),
            [dy_low.bind(a, b), held, out.bind(a, b), dy_low.bind(a, b), held],
            (
                0,
                0,
                b - a,
                dx.columns,
                0,
                4,
                0,
                0,
                out.stride // 4,
                0,
                0,
                0,
                pair.a.shape[0],
                dy_low.stride,
                0,
                FAR,
                FAR,
                held.shift,
                1,
                pair.a.stride,
            ),
            (-(-dx.columns // tile.n), -(-(b - a) // tile.m), 1),
            2.0 * (b - a) * dx.columns * pair.rank,
        )
    mask(e, out, group, dx, True)


def add_gradients(e, x: Array, dy_low: Array, dy: Array, low: Array, part: Part, pair: LoraPair) -> None:
    """grad_a += dy_lowᵀ x, grad_b += dyᵀ low. Both low-rank products carry the scale already."""
    every, rank = pair.a.shape[0], part.rank
    for a, b in row_cuts(e.device.max_binding, x, dy, dy_low, low):
        down, up = pair.grad_a.bind(), pair.grad_b.bind()
        e.commands.run(
            _low.gradients(),
            [x.bind(a, b), dy_low.bind(a, b), dy.bind(a, b), low.bind(a, b), down, up],
            (
                b - a,
                x.columns,
                every,
                x.stride,
                dy_low.stride,
                down.shift,
                1,
                pair.grad_a.stride,
                dy.columns,
                rank,
                dy.stride,
                low.stride,
                up.shift,
                pair.grad_b.stride,
                1,
                *pair_bounds(part, 0),
            ),
            (-(-x.columns // _low.COLUMNS) - (-dy.columns // _low.COLUMNS), -(-every // _low.RANKS)),
            2.0 * (b - a) * (x.columns + dy.columns) * every,
        )
