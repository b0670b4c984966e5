"""Which experts a token goes to, and rows of slots (a token at one of its experts), sorted by expert on the device.

Nothing is read back, so that a step can be recorded: dispatches are as large as they may have to be, and workgroups
without rows leave at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from anytune.engine.base import Router
from anytune.errors import UserError

from .arrays import Array, row_cuts
from .kernels import experts as _kernels
from .kernels import routing as _routes
from .kernels import routing_backward as _back
from .kernels.columns import COLUMNS


@dataclass
class Routing:
    """chosen, weights [T, used]: experts and their weights, largest first; shares [T, used]: the weights before all
    factors, where experts have factors of their own, scales [experts]; order [S]: slots sorted by expert; place
    [T, used]: its inverse; bounds [experts + 1]: where an expert's slots begin; parts [T, experts]: what the weights
    were made of, where the backward asks for it; real [1]: tokens that are no padding. Integers are int32."""

    router: Router
    tokens: int
    chosen: Array
    weights: Array
    order: Array
    place: Array
    bounds: Array
    parts: Array | None
    shares: Array | None
    scales: Array | None
    real: Array
    _tiles: dict[int, tuple[Array, int]] = field(default_factory=dict, repr=False)

    @property
    def slots(self) -> int:
        return self.tokens * self.router.used

    def tiles(self, e, m: int) -> tuple[Array, int]:
        """(expert, first slot, end) of tiles of m slots, and how many there may be."""
        if m not in self._tiles:
            most = self.most_tiles(self.slots, m)
            held = 3 * max(most, self.most_tiles(e.buffer_rows(self.tokens) * self.router.used, m))
            made = e.flat(3 * most, held)
            e.commands.run(_routes.tiles(), [self.bounds, made], (self.router.experts, m, most), (1,))
            self._tiles[m] = made, most
        return self._tiles[m]

    def most_tiles(self, slots: int, m: int) -> int:
        """Every expert that has slots may have one tile that is not full."""
        return (slots + min(slots, self.router.experts) * (m - 1)) // m


def route(e, scores: Array, bias: Array | None, router: Router, scales: Array | None = None) -> Routing:
    tokens, limit = scores.rows, e.device.max_binding
    for what, count, most in (
        ("groups of experts", router.groups, _routes.GROUPS),
        ("experts", router.experts, _routes.EXPERTS),
    ):
        if count > most:
            raise UserError(f"{count} {what} are more than the {most} of --device webgpu")
    slots, most = tokens * router.used, e.buffer_rows(tokens) * router.used
    chosen, weights, order, place = (e.flat(slots, most) for _ in range(4))
    chosen, weights, place = (x.reshape(tokens, router.used) for x in (chosen, weights, place))
    bounds = e.flat(router.experts + 1, router.experts + 1)
    keeps = router.kind == "sigmoid" or router.kind == "softmax" and not router.normalized
    parts = e.array(tokens, router.experts) if keeps else None
    shares = None if scales is None else e.flat(slots, most).reshape(tokens, router.used)
    own, by = [None if x is None else x.bind() for x in (bias, scales)]
    for a, b in row_cuts(limit, scores, parts):
        kept = parts.bind(a, b) if keeps else None
        arrays = [scores.bind(a, b), own, by, chosen, weights, kept, shares]
        e.commands.run(
            _routes.choose(router.kind, own is not None, keeps, by is not None, router.groups > 1),
            [x for x in arrays if x is not None],
            (
                *(router.experts, router.used, scores.stride, a, int(router.normalized), router.scale),
                *(parts.stride if keeps else 0, own.shift if own else 0, by.shift if by else 0),
                *(router.groups, router.near),
            ),
            (b - a,),
            8.0 * (b - a) * router.experts * router.used,
        )
    real = e.real[1:] if e.trimmed else e.real[:1]
    held = real.bind()
    e.commands.run(
        _routes.sort(),
        [chosen, held, order, place, bounds],
        (router.experts, router.used, held.shift, tokens),
        (router.experts,),
        2.0 * router.experts * slots,
    )
    if e.training:
        e.loads = e.zeros(3) if e.loads is None else e.loads
        e.commands.run(_routes.loads(), [bounds, e.loads], (router.experts,), (1,))
    return Routing(router, tokens, chosen, weights, order, place, bounds, parts, shares, scales, real)


def take_loads(e) -> dict[str, float]:
    if e.loads is None:
        return {}
    count, peak, idle = e.host(e.loads).tolist()
    e.commands.write(e.loads, np.zeros(3, np.float32))
    return {"expert_peak": peak / count, "expert_idle": idle / count} if count else {}


def route_backward(e, dweights: Array, routing: Routing, into: Array | None = None) -> Array:
    router, parts, shares = routing.router, routing.parts, routing.shares
    out, by = e.array(routing.tokens, router.experts), None if shares is None else routing.scales.bind()
    for a, b in row_cuts(e.device.max_binding, parts, out):
        real, kept = routing.real.bind(), None if parts is None else parts.bind(a, b)
        first = [routing.weights] if shares is None else [shares, by]
        arrays = [dweights, *first, kept, routing.chosen, real, out.bind(a, b)]
        e.commands.run(
            _back.backward(router.kind, router.normalized, by is not None),
            [x for x in arrays if x is not None],
            (
                *(router.experts, router.used, dweights.stride, out.stride, a, router.scale),
                *(0 if parts is None else parts.stride, real.shift, by.shift if by else 0),
            ),
            (-(-router.experts // _back.LANES), b - a),
            8.0 * (b - a) * router.experts * router.used,
        )
    if into is not None:
        held = into.bind()
        e.commands.run(
            _back.scale_gradient(),
            [dweights, shares, routing.order, routing.bounds, held],
            (router.used, dweights.stride, router.scale, held.shift),
            (router.experts,),
        )
    return out


def dispatch(e, x: Array, routing: Routing) -> Array:
    out = e.array(routing.slots, x.columns)
    for low, high in row_cuts(e.device.max_binding, x):
        for a, b in row_cuts(e.device.max_binding, out):
            e.commands.run(
                _kernels.dispatch(),
                [x.bind(low, high), routing.order, out.bind(a, b)],
                (x.columns, routing.router.used, x.stride, out.stride, a, low, high),
                e.grid(x.columns, b - a),
            )
    return out


def combine(e, y: Array, routing: Routing, beside: tuple = ()) -> Array:
    out, adds = e.array(routing.tokens, y.columns), 0
    for low, high in row_cuts(e.device.max_binding, y):
        for a, b in row_cuts(e.device.max_binding, out):
            real = routing.real.bind()
            e.commands.run(
                _kernels.combine(),
                [y.bind(low, high), routing.place, real, out.bind(a, b)],
                (y.columns, routing.router.used, y.stride, out.stride, a, low, high, adds, real.shift),
                e.grid(y.columns, b - a),
                2.0 * (b - a) * y.columns * routing.router.used,
            )
        adds = 1
    for x in beside:
        e.add(x, out).now()
    return out


def weigh(e, x: Array, routing: Routing) -> Array:
    out = e.array(*x.shape)
    for a, b in row_cuts(e.device.max_binding, x, out):
        e.commands.run(
            _kernels.weigh(),
            [x.bind(a, b), routing.weights, routing.order, routing.bounds, out.bind(a, b)],
            (x.columns, x.stride, out.stride, a, routing.router.experts),
            e.grid(x.columns, b - a),
        )
    return out


def weigh_backward(e, dy: Array, x: Array, routing: Routing) -> tuple[Array, Array]:
    router, dweights = routing.router, _dweights(e, routing)
    for a, b in row_cuts(e.device.max_binding, dy, x):
        e.commands.run(
            _kernels.weigh_backward(),
            [dy.bind(a, b), x.bind(a, b), routing.weights, routing.order, routing.bounds, dweights],
            (x.columns, router.used, dy.stride, x.stride, dweights.stride, a, router.experts),
            (b - a,),
            3.0 * (b - a) * x.columns,
        )
    return dy, dweights


def _dweights(e, routing: Routing) -> Array:
    used = routing.router.used
    return e.flat(routing.slots, e.buffer_rows(routing.tokens) * used).reshape(routing.tokens, used)


def weigh_bias(e, y: Array, bias: Array, routing: Routing) -> Array:
    for a, b in row_cuts(e.device.max_binding, y):
        held = bias.bind()
        e.commands.run(
            _kernels.weigh_bias(),
            [y.bind(a, b), routing.weights, held, routing.order, routing.chosen, routing.bounds],
            (y.columns, y.stride, a, routing.router.experts, held.shift),
            e.grid(y.columns, b - a),
        )
    return y


def weigh_bias_backward(e, dy: Array, bias: Array, routing: Routing, dweights: Array, into=None) -> Array:
    router = routing.router
    for a, b in row_cuts(e.device.max_binding, dy):
        held = bias.bind()
        e.commands.run(
            _kernels.weigh_bias_backward(),
            [dy.bind(a, b), held, routing.order, routing.chosen, routing.bounds, dweights],
            (dy.columns, router.used, dy.stride, 0, dweights.stride, a, router.experts, held.shift),
            (b - a,),
            2.0 * (b - a) * dy.columns,
        )
    if into is not None:
        column_sums(e, dy, routing, into, True)
    return dweights


def column_sums(e, dy: Array, routing: Routing, into: Array, weighed: bool = False) -> None:
    """into [experts, n] += each expert's sum over its slots, of each slot times its weight if weighed."""
    for a, b in row_cuts(e.device.max_binding, dy):
        held = into.bind()
        e.commands.run(
            _kernels.column_sums(weighed),
            [dy.bind(a, b), *([routing.weights, routing.order] if weighed else []), held, routing.bounds],
            (dy.columns, dy.stride, held.shift, 0, routing.router.experts, a, b),
            (-(-dy.columns // COLUMNS), routing.router.experts),
            2.0 * (b - a) * dy.columns,
        )
