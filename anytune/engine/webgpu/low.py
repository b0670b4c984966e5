"""Low-rank pairs beside their linears: both products, dropout before the first, and gradients."""

from __future__ import annotations

from .arrays import Array, row_cuts
from .groups import Group
from .kernels import gemm as _gemm
from .kernels import low as _low
from .kernels import rows as _rows
from .weights import FAR, LoraPair, Part, pair_bounds


def dropout(e, x: Array, group: Group) -> Array:
    """x with dropout's mask and its 1/(1-p), or x itself."""
    if not (group.dropout and e.training and group.rank):
        return x
    out = e.array(x.rows, x.columns)
    add_dropout(e, x, group, out, False)
    return out


def add_dropout(e, x: Array, group: Group, out: Array, adds: bool) -> None:
    for a, b in row_cuts(e.device.max_binding, x, out):
        key = e.key.bind()
        e.commands.run(
            _rows.dropout(adds),
            [x.bind(a, b), key, out.bind(a, b)],
            (x.columns, x.stride, out.stride, key.shift, group.number, a, group.dropout),
            e.grid(x.columns, b - a),
        )


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
                *(b - a, pair.scale, x.columns, pair.rank, x.stride, low.stride, down.shift, 1, pair.a.stride),
                *(*bounds, rank, dy.stride, dy_low.stride, up.shift, pair.b.stride, 1),
            ),
            (-(-(b - a) // _low.TOKENS), -(-pair.rank // _low.RANKS), 1 + len(part.weights)),
            2.0 * (b - a) * (x.columns + dy.columns) * pair.rank,
        )
    return low, dy_low


def input_gradient(e, dy_low: Array, pair: LoraPair, group: Group, dx: Array) -> None:
    """dx += mask (dy_low A): the low-rank part of dx passes dropout's mask on its own."""
    out = e.array(*dx.shape)
    for a, b in row_cuts(e.device.max_binding, dy_low, out):
        held = pair.a.bind()
        tile = e.tile_product(False, b - a, dx.columns, 1)[0]
        e.commands.run(
            _gemm.gemm("F32", False, tile, True),
            [dy_low.bind(a, b), held, out.bind(a, b), dy_low.bind(a, b), held],
            (
                *(0, 0, b - a, dx.columns, 0, 4, 0, 0, out.stride // 4, 0, 0, 0),
                *(pair.a.shape[0], dy_low.stride, 0, FAR, FAR, held.shift, 1, pair.a.stride),
            ),
            (-(-dx.columns // tile.n), -(-(b - a) // tile.m), 1),
            2.0 * (b - a) * dx.columns * pair.rank,
        )
    add_dropout(e, out, group, dx, True)


def add_gradients(e, x: Array, dy_low: Array, dy: Array, low: Array, part: Part, pair: LoraPair) -> None:
    """grad_a += dy_lowᵀ x, grad_b += dyᵀ low. Both low-rank products carry the scale already."""
    every, rank = pair.a.shape[0], part.rank
    for a, b in row_cuts(e.device.max_binding, x, dy, dy_low, low):
        down, up = pair.grad_a.bind(), pair.grad_b.bind()
        e.commands.run(
            _low.gradients(),
            [x.bind(a, b), dy_low.bind(a, b), dy.bind(a, b), low.bind(a, b), down, up],
            (
                *(b - a, x.columns, every, x.stride, dy_low.stride, down.shift, 1, pair.grad_a.stride),
                *(dy.columns, rank, dy.stride, low.stride, up.shift, pair.grad_b.stride, 1, *pair_bounds(part, 0)),
            ),
            (-(-x.columns // _low.COLUMNS) - (-dy.columns // _low.COLUMNS), -(-every // _low.RANKS)),
            2.0 * (b - a) * (x.columns + dy.columns) * every,
        )
