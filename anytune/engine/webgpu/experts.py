"""Mixtures of experts: the products of all experts as one dispatch, each tile of slots with its expert's blocks.

routing.py sorts tokens by expert on the device and lists the tiles; an expert without a token has none. A tensor
[experts, out, in] is one matrix [experts * out, in] (weights.py). Where a binding cannot hold it, it is cut into runs
of whole experts, or of rows of one expert.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from anytune.engine.trains import Trains

from .arrays import Array, Bound, bound, cuts, lines, row_cuts
from .device import ALIGN
from .kernels import gemm as _gemm
from .kernels import gemv as _gemv
from .kernels import gradients as _gradients
from .kernels import low as _low
from .low import add_dropout, dropout
from .routing import Routing, column_sums
from .weights import FAR, LoraPair, Rows, rows_in


LOW = (_gemm.Tile(16), _gemm.Tile(32))  # tiles for experts with few slots


class Experts(Trains):
    """The linears of all experts that share an input. See groups.Group; weights, biases and pairs have one dimension
    more."""

    def __init__(self, weights, biases=None, pairs=None, dropout: float = 0.0, number: int = 0, bias_gradients=None):
        none = (None,) * len(weights)
        self.weights, self.biases = tuple(weights), tuple(biases or none)
        self.pairs: tuple[LoraPair | None, ...] = tuple(pairs or none)
        self.dropout, self.number, self.bias_gradients = dropout, number, tuple(bias_gradients or none)
        self.in_features = self.weights[0].in_features
        self.starts = np.cumsum([0] + [lines(w.expert_features) for w in self.weights]).tolist()
        self.rank = sum(s.a.shape[1] for s in self.pairs if s is not None)

    def load(self) -> None:
        """Bring the weights to the device, but those that are streamed."""
        for weight in self.weights:
            if weight.hold != "stream":
                weight.rows()


@dataclass(frozen=True)
class Piece:
    """Rows low…high of each of the experts first…last, in a binding from byte `base`."""

    first: int
    last: int
    low: int
    high: int
    held: Bound
    base: int


def expert_group(e, weights, biases=None, pairs=None, dropout=0.0, number=0, bias_gradients=None) -> Experts:
    return Experts(weights, biases, pairs, dropout, number, bias_gradients)


def pieces(e, runs: list[Rows], features: int, row_bytes: int, most: int, beside: int = 0) -> Iterator[Piece]:
    """A matrix [experts * features, in] in pieces that fit a binding, with at most `most` rows of each expert. beside:
    bytes of each expert in another binding."""
    room = rows_in(e.device.max_binding, row_bytes, sum(run.high - run.low for run in runs))
    count = e.device.max_binding // beside if beside else 1 << 30
    for run in runs:
        at = run.low
        while at < run.high:
            expert, row = divmod(at, features)
            experts = min((run.high - at) // features, room // features, max(1, count))
            rows = features
            if row or experts < 1:
                left = min(features - row, run.high - at)
                experts, rows = 1, left if left <= room else max(4, room // 4 * 4)
            first = run.at + (at - run.low) * row_bytes
            held = bound(run.buffer, first, first + (experts * rows) * row_bytes, 4)
            for low, high in cuts(rows, most, 64):
                base = first - held.start + low * row_bytes
                yield Piece(expert, expert + experts, row + low, row + high, held, base)
            at += experts * rows


def _of(x: Array, first: int, last: int) -> Bound:
    """Experts first…last of an array [experts, …]."""
    each = x.size // x.shape[0]
    return bound(x.buffer, 4 * (x.at + first * each), 4 * (x.at + last * each))


def _whole(e, x: Array) -> Iterator[tuple[int, int, Bound]]:
    """(first, last, binding) of runs of an array [experts, …]; one expert's part fits."""
    for first, last in cuts(x.shape[0], max(1, (e.device.max_binding - ALIGN) // (4 * x.size // x.shape[0]))):
        yield first, last, _of(x, first, last)


def _weights(e, weight, routing: Routing, pair: LoraPair | None, most: int) -> Iterator[Piece]:
    beside = 0 if pair is None else 4 * max(x.size // x.shape[0] for x in (pair.a, pair.b))
    runs = e.streamer.bring(weight, routing.bounds) if weight.hold == "stream" else weight.rows()
    yield from pieces(e, runs, weight.expert_features, weight.row_bytes, most, beside)


def expert_linear(e, x: Array, group: Experts, routing: Routing) -> tuple[Array, ...]:
    y = e.array(x.rows, group.starts[-1])
    source = dropout(e, x, group)
    few = not e.training and x.rows <= e.decode_rows * routing.router.used
    for weight, bias, pair, at in zip(group.weights, group.biases, group.pairs, group.starts):
        low = None if pair is None else _low_product(e, source, pair, routing, True)
        (_vectors if few else _forward)(e, x, weight, bias, pair, low, routing, y, at)
    return tuple(y.part(at, at + w.expert_features) for at, w in zip(group.starts, group.weights))


def _low_product(e, x: Array, pair: LoraPair, routing: Routing, forward: bool) -> Array:
    """s x Aᵀ, or s dy B: [S, rank]."""
    factor, rank = pair.a if forward else pair.b, pair.a.shape[1]
    out, (tiles, count) = e.array(x.rows, rank), routing.tiles(e, _low.TOKENS)
    steps = (1, x.columns) if forward else (rank, 1)
    for first, last, held in _whole(e, factor):
        for a, b in row_cuts(e.device.max_binding, x, out):
            e.commands.run(
                _low.low(True),
                [x.bind(a, b), held, out.bind(a, b), tiles],
                (b - a, pair.scale, x.columns, rank, x.stride, out.stride, held.shift, *steps)
                + (first, last, a, b, rank * x.columns),
                (count, -(-rank // _low.RANKS)),
                2.0 * (b - a) * x.columns * rank,
            )
    return out


def _tile(e, routing: Routing, forward: bool, n: int, k: int) -> _gemm.Tile:
    """A low tile where experts have few slots on average: rows of a tile without a slot are wasted work."""
    rows = -(-routing.slots // routing.router.experts)
    return next((tile for tile in LOW if rows <= tile.m), None) or e.tile_product(forward, rows, n, k)[0]


def _forward(e, x: Array, weight, bias, pair, low, routing: Routing, y: Array, y0: int) -> None:
    """Columns y0… of y [S, …] = each slot's row of x times its expert's matrix, with pair and bias."""
    k = weight.in_features
    tile = _tile(e, routing, True, weight.expert_features, k)
    tiles, count = routing.tiles(e, tile.m)
    kernel = _gemm.gemm(weight.block, True, tile, low is not None, bias is not None, True)
    for piece in _weights(e, weight, routing, pair, e.most_columns(x.rows, k)):
        n = piece.high - piece.low
        for a, b in row_cuts(e.device.max_binding, x, y, low):
            arrays, more, last = _extras(piece, weight, bias, pair, low, a, b, FAR, FAR)
            e.commands.run(
                kernel,
                [x.bind(a, b), piece.held, y.bind(a, b), *arrays, tiles],
                (piece.base, weight.row_bytes, b - a, n, k, -(-k // 4) * 4, x.stride // 4, 0)
                + (y.stride // 4, (y0 + piece.low) // 4, 0, 0, *more)
                + (piece.first, piece.last, a, b, weight.expert_features, *last),
                (-(-n // tile.n), count),
                2.0 * (b - a) * n * k,
            )


def _extras(piece: Piece, weight, bias, pair, low: Array | None, a: int, b: int, *far: int) -> tuple[list, list, list]:
    """(bindings, parameters, and elements from an expert to the next) of the pair and the bias of a forward product of
    rows a…b; each list is empty where there is neither. far: where kernels of several pairs look for the others."""
    arrays, numbers, steps = [], [], []
    if low is not None:
        factor, rank = _of(pair.b, piece.first, piece.last), pair.b.shape[2]
        arrays += [low.bind(a, b), factor]
        numbers += [rank, low.stride, 0, *far, factor.shift + piece.low * rank, rank, 1]
        steps.append(weight.expert_features * rank)
    if bias is not None:
        held = bias.bind()
        arrays.append(held)
        numbers.append(held.shift + piece.low)
        steps.append(weight.expert_features)
    return arrays, numbers, steps


def _vectors(e, x: Array, weight, bias, pair, low, routing: Routing, y: Array, y0: int) -> None:
    """As _forward(), for few slots: each reads its expert's matrix for itself."""
    k = weight.in_features
    kernel = _gemv.gemv(weight.block, 1, low is not None, bias is not None, True)
    for piece in _weights(e, weight, routing, pair, 1 << 30):
        n = piece.high - piece.low
        arrays, more, last = _extras(piece, weight, bias, pair, low, 0, x.rows)
        pairs = -(-n // 2)
        e.commands.run(
            kernel,
            [x, piece.held, y, *arrays, routing.chosen, routing.order],
            (piece.base, weight.row_bytes, 1, n, k, x.stride // 4, y.stride, y0 + piece.low, *more)
            + (piece.first, piece.last, 0, x.rows, weight.expert_features, *last),
            (min(32768, pairs), -(-pairs // 32768), x.rows),
            2.0 * x.rows * n * k,
        )


def expert_linear_backward(e, dys: tuple, x: Array, group: Experts, routing: Routing, need_dx: bool = True):
    dx = e.array(routing.slots, group.in_features) if need_dx else None
    source = dropout(e, x, group) if group.trains_pairs else None
    drops, begun = bool(group.dropout and e.training), False
    for dy, weight, pair, gradient in zip(dys, group.weights, group.pairs, group.bias_gradients):
        dy_low = None if pair is None else _low_product(e, dy, pair, routing, False)
        if dx is not None:
            apart = drops and pair is not None
            _backward(e, dy, weight, pair, None if apart else dy_low, routing, dx, begun)
            if apart:
                _input_gradient(e, dy_low, pair, group, routing, dx)
            begun = True
        if pair is not None and pair.grad_a is not None:
            low = _low_product(e, source, pair, routing, True)
            rank, n = pair.a.shape[1], group.in_features
            _pair_gradient(e, source, dy_low, pair.grad_a, (1, n), rank, routing)
            _pair_gradient(e, dy, low, pair.grad_b, (rank, 1), rank, routing)
            del low
        if weight.gradient is not None:
            _matrix_gradient(e, dy, x, weight, routing)
        if gradient is not None:
            column_sums(e, dy, routing, gradient)
        del dy_low
    return dx


def _backward(e, dy: Array, weight, pair, dy_low, routing: Routing, dx: Array, adds: bool) -> None:
    """dx (+)= each slot's row of dy times its expert's matrix, with its pair's product unless dy_low is None."""
    n = weight.in_features
    tile = _tile(e, routing, False, n, weight.expert_features)
    tiles, count = routing.tiles(e, tile.m)
    for piece in _weights(e, weight, routing, pair, e.most_columns(dy.rows, n)):
        k, ride = piece.high - piece.low, dy_low is not None and piece.low == 0
        kernel = _gemm.gemm(weight.block, False, tile, ride, False, True)
        for a, b in row_cuts(e.device.max_binding, dy, dx, dy_low):
            arrays, more, last = [dy.bind(a, b), piece.held, dx.bind(a, b)], [], []
            if ride:
                factor, rank = _of(pair.a, piece.first, piece.last), pair.a.shape[1]
                arrays += [dy_low.bind(a, b), factor]
                more, last = [rank, dy_low.stride, 0, FAR, FAR, factor.shift, 1, n], [rank * n]
            e.commands.run(
                kernel,
                [*arrays, tiles],
                (piece.base, weight.row_bytes, b - a, n, k, -(-k // 4) * 4, dy.stride // 4, piece.low // 4)
                + (dx.stride // 4, 0, 0, int(adds or piece.low > 0), *more)
                + (piece.first, piece.last, a, b, weight.expert_features, *last),
                (-(-n // tile.n), count),
                2.0 * (b - a) * n * k,
            )


def _input_gradient(e, dy_low: Array, pair: LoraPair, group: Experts, routing: Routing, dx: Array) -> None:
    """dx += mask (dy_low A): the low-rank part of dx passes dropout's mask on its own."""
    out, n, rank = e.array(*dx.shape), dx.columns, pair.a.shape[1]
    tile = _tile(e, routing, False, n, 1)
    tiles, count = routing.tiles(e, tile.m)
    for first, last, held in _whole(e, pair.a):
        for a, b in row_cuts(e.device.max_binding, dy_low, out):
            e.commands.run(
                _gemm.gemm("F32", False, tile, False, False, True),
                [dy_low.bind(a, b), held, out.bind(a, b), tiles],
                (4 * held.shift, 4 * n, b - a, n, rank, -(-rank // 4) * 4, dy_low.stride // 4, 0)
                + (out.stride // 4, 0, 0, 0, first, last, a, b, rank),
                (-(-n // tile.n), count),
                2.0 * (b - a) * n * rank,
            )
    add_dropout(e, out, group, dx, True)


def _pair_gradient(e, x: Array, y: Array, into: Array, steps: tuple[int, int], rank: int, routing: Routing) -> None:
    """into[expert] += its slots' xᵀ y, at strides (of columns of x, of columns of y)."""
    for first, last, held in _whole(e, into):
        for a, b in row_cuts(e.device.max_binding, x, y):
            e.commands.run(
                _low.expert_gradient(),
                [x.bind(a, b), y.bind(a, b), held, routing.bounds],
                (x.columns, rank, x.stride, y.stride, held.shift, *steps, first, last, a, b, rank * x.columns),
                (-(-x.columns // _low.COLUMNS), -(-rank // _low.RANKS), last - first),
                2.0 * (b - a) * x.columns * rank,
            )


def _matrix_gradient(e, dy: Array, x: Array, weight, routing: Routing) -> None:
    """dW[expert] += its slots' dyᵀ x."""
    gradient, n, most = weight.gradient, x.columns, e.most_columns(x.rows, x.columns)
    tile = _tile(e, routing, False, n, weight.expert_features)
    runs = [Rows(0, gradient.rows, gradient.buffer, 4 * gradient.at)]
    for piece in pieces(e, runs, weight.expert_features, 4 * n, most):
        m = piece.high - piece.low
        for a, b in row_cuts(e.device.max_binding, dy, x):
            e.commands.run(
                _gradients.outer(tile, True),
                [dy.bind(a, b), x.bind(a, b), piece.held, routing.bounds],
                (b - a, m, n, dy.stride, piece.low, x.stride, piece.base // 4)
                + (piece.first, piece.last, a, b, weight.expert_features),
                (-(-n // tile.n), -(-m // tile.m), piece.last - piece.first),
                2.0 * (b - a) * m * n,
            )
