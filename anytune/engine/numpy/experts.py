"""Mixtures of experts: tokens sorted by the expert that they chose, and each expert's products over its own.

Each expert's matrices are weights of their own (weights.py), so that what is read, and dequantized once for each use,
is that of experts that got a token.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import numpy as np

from anytune.engine.base import Router
from anytune.engine.shapes import LEAST_SUM
from anytune.engine.trains import Trains

from .convolution import sigmoid
from .linear import (
    GRADIENT,
    Group,
    LoraPair,
    backward_pieces,
    dropped,
    forward_pieces,
    forward_tile,
    backward_tile,
    into_rank,
    pair_down,
    pair_up,
    scaled_down,
)
from .gradients import gradient_jobs
from .workers import Job, piece, pieces


@dataclass
class Experts(Trains):
    """The linears of all experts that share an input. See Group; weights, biases and pairs have one dimension more."""

    weights: tuple
    biases: tuple
    pairs: tuple[LoraPair | None, ...]
    dropout: float
    number: int
    bias_gradients: tuple
    _made: dict[int, Group] = field(default_factory=dict, repr=False)

    @property
    def in_features(self) -> int:
        return self.weights[0].in_features

    @property
    def width(self) -> int:
        return sum(w.expert_features for w in self.weights)

    @property
    def rank(self) -> int:
        return sum(s.a.shape[1] for s in self.pairs if s is not None)

    def of(self, expert: int) -> Group:
        """One expert's linears."""
        if expert not in self._made:
            self._made[expert] = Group(
                tuple(w.expert(expert) for w in self.weights),
                tuple(b if b is None else b[expert] for b in self.biases),
                tuple(s and _pair(s, expert) for s in self.pairs),
                self.dropout,
                self.number,
                tuple(b if b is None else b[expert] for b in self.bias_gradients),
            )
        return self._made[expert]


def _pair(s: LoraPair, expert: int) -> LoraPair:
    grads = (g if g is None else g[expert] for g in (s.grad_a, s.grad_b))
    return LoraPair(s.a[expert], s.b[expert], s.scale, *grads)


@dataclass
class Routing:
    """chosen, shares [T, used]: experts and their weights before all factors, largest first; factor: these; tokens [S]:
    of each slot; place [T, used]: where a token's slots are; bounds: where the slots of an expert begin, and end; parts
    [T, experts]: what the weights were made of."""

    router: Router
    chosen: np.ndarray
    shares: np.ndarray
    factor: np.ndarray
    tokens: np.ndarray
    place: np.ndarray
    bounds: list[int]
    parts: np.ndarray

    @property
    def weights(self) -> np.ndarray:
        return self.shares * self.factor

    @property
    def spans(self) -> list[tuple[int, int, int]]:
        """(expert, first slot, last slot) of those that got a token."""
        return [(i, a, b) for i, (a, b) in enumerate(zip(self.bounds, self.bounds[1:])) if b > a]


def expert_group(e, weights, biases=None, pairs=None, dropout=0.0, number=0, bias_gradients=None) -> Experts:
    none = (None,) * len(weights)
    return Experts(
        tuple(weights), tuple(biases or none), tuple(pairs or none), dropout, number, tuple(bias_gradients or none)
    )


def _softmax(x: np.ndarray) -> np.ndarray:
    p = np.exp(x - x.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


def _near(choice: np.ndarray, router: Router) -> np.ndarray:
    """choice [T, experts], -inf but in the groups that a token may choose from."""
    groups = choice.reshape(len(choice), router.groups, -1)
    best = np.partition(groups, -2, axis=2)[:, :, -2:].sum(2)
    far = np.argsort(-best, axis=1, kind="stable")[:, router.near :]
    groups = groups.copy()
    np.put_along_axis(groups, far[:, :, None], -np.inf, axis=1)
    return groups.reshape(choice.shape)


def route(e, scores: np.ndarray, bias: np.ndarray | None, router: Router, scales: np.ndarray | None = None) -> Routing:
    scores = np.asarray(scores, np.float32)
    if router.kind == "chosen":
        parts = scores
    elif router.kind == "sigmoid":
        with np.errstate(over="ignore"):
            parts = 1.0 / (1.0 + np.exp(-scores))
    else:
        parts = _softmax(scores)
    choice = parts if bias is None else parts + bias
    if router.groups > 1:
        choice = _near(choice, router)
    order = np.argsort(-choice, axis=1, kind="stable")
    chosen = np.ascontiguousarray(order[:, : router.used], np.int32)
    shares = np.take_along_axis(parts, chosen, 1)
    if router.kind == "chosen":
        shares = _softmax(shares)
    elif router.normalized:
        shares = shares / np.maximum(shares.sum(1, keepdims=True), LEAST_SUM)
    flat = chosen.reshape(-1)
    slots = np.argsort(flat, kind="stable")
    place = np.empty(len(flat), np.int32)
    place[slots] = np.arange(len(flat), dtype=np.int32)
    counts = np.bincount(flat, minlength=router.experts)
    if e.training:
        e.loads.add(float(counts.max() / counts.mean()), float((counts == 0).mean()))
    return Routing(
        router,
        chosen,
        shares,
        np.float32(router.scale) * (np.float32(1) if scales is None else scales[chosen]),
        (slots // router.used).astype(np.int32),
        place.reshape(chosen.shape),
        [0, *np.cumsum(counts).tolist()],
        parts,
    )


def route_backward(e, dweights: np.ndarray, routing: Routing, into: np.ndarray | None = None) -> np.ndarray:
    router, chosen = routing.router, routing.chosen
    out = e.array(len(chosen), router.experts)
    out[...] = 0
    d, weights = dweights * routing.factor, routing.shares
    if into is not None:
        np.add.at(into, chosen, dweights * weights * np.float32(router.scale))
    parts = np.take_along_axis(routing.parts, chosen, 1)
    if router.kind == "chosen" or router.kind == "softmax" and router.normalized:
        d = weights * (d - (weights * d).sum(1, keepdims=True))
    else:
        if router.normalized:
            d = (d - (weights * d).sum(1, keepdims=True)) / np.maximum(parts.sum(1, keepdims=True), LEAST_SUM)
        if router.kind == "sigmoid":
            d = d * parts * (1 - parts)
        else:
            inner = (d * parts).sum(1, keepdims=True)
            np.multiply(routing.parts, -inner, out=out)
            d = d * parts
    out[np.arange(len(chosen))[:, None], chosen] += d
    return out


def _rows(e, routing: Routing, columns: int, row_padding: int | None = None) -> np.ndarray:
    """An array of a row a slot, of one size for all streams."""
    return e.array(len(routing.tokens), columns, row_padding, routing.router.used)


def dispatch(e, x: np.ndarray, routing: Routing) -> np.ndarray:
    out, tokens = _rows(e, routing, x.shape[1]), routing.tokens
    e.workers.rows(len(tokens), lambda a, b: np.copyto(out[a:b], x[tokens[a:b]]), 64)
    return out


def combine(e, y: np.ndarray, routing: Routing, beside: tuple = ()) -> np.ndarray:
    out, place = e.array(len(routing.place), y.shape[1]), routing.place

    def rows(a: int, b: int) -> None:
        out[a:b] = y[place[a:b, 0]]
        for at in range(1, place.shape[1]):
            out[a:b] += y[place[a:b, at]]
        for x in beside:
            out[a:b] += x[a:b]

    e.workers.rows(len(place), rows, 64)
    return out


def _slot_weights(routing: Routing) -> np.ndarray:
    """[S, 1]"""
    out = np.empty((len(routing.tokens), 1), np.float32)
    out[routing.place.reshape(-1), 0] = routing.weights.reshape(-1)
    return out


def weigh(e, x: np.ndarray, routing: Routing) -> np.ndarray:
    out, weights = _rows(e, routing, x.shape[1]), _slot_weights(routing)
    e.workers.rows(len(x), lambda a, b: np.multiply(x[a:b], weights[a:b], out=out[a:b]), 64)
    return out


def weigh_backward(e, dy: np.ndarray, x: np.ndarray, routing: Routing) -> tuple[np.ndarray, np.ndarray]:
    weights, inner = _slot_weights(routing), np.empty((len(x), 1), np.float32)

    def rows(a: int, b: int) -> None:
        e.kernels.row_dots(dy[a:b], x[a:b], 1, inner[a:b])
        dy[a:b] *= weights[a:b]

    e.workers.rows(len(x), rows, 64)
    return dy, inner[routing.place, 0]


def weigh_bias(e, y: np.ndarray, bias: np.ndarray, routing: Routing) -> np.ndarray:
    weights = _slot_weights(routing)
    for expert, low, high in routing.spans:
        y[low:high] += weights[low:high] * bias[expert]
    return y


def weigh_bias_backward(e, dy, bias: np.ndarray, routing: Routing, dweights: np.ndarray, into=None) -> np.ndarray:
    weights, inner = _slot_weights(routing), np.empty(len(dy), np.float32)
    for expert, low, high in routing.spans:
        np.matmul(dy[low:high], bias[expert], out=inner[low:high])
        if into is not None:
            into[expert] += (weights[low:high] * dy[low:high]).sum(0)
    return dweights + inner[routing.place]


def gate_rows(e, x: np.ndarray, gate: np.ndarray) -> np.ndarray:
    out, by = e.array(*x.shape), sigmoid(gate)
    np.multiply(x, by, out=out)
    return out


def gate_rows_backward(e, dy: np.ndarray, x: np.ndarray, gate: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    dx, dgate, by = e.array(*x.shape), e.array(*gate.shape), sigmoid(gate)
    np.multiply(dy, by, out=dx)
    dgate[...] = np.einsum("tn,tn->t", dy, x)[:, None] * by * (1 - by)
    return dx, dgate


def _low_ranks(e, x: np.ndarray, group: Experts, routing: Routing, mask) -> np.ndarray:
    """[x | s x Aᵀ], by each slot's expert."""
    if not group.rank:
        return x
    extended, features = e.extend(x, group.rank, routing.router.used), group.in_features

    def work(expert: int, low: int, high: int, number: int) -> None:
        one = group.of(expert)
        source = x[low:high] if mask is None else dropped(e, x, one, mask, low, high)
        np.matmul(source, scaled_down(one).T, out=extended[low:high, features:])

    e.workers.run([partial(work, *span) for span in routing.spans])
    return extended


def expert_linear(e, x: np.ndarray, group: Experts, routing: Routing) -> tuple[np.ndarray, ...]:
    y = _rows(e, routing, group.width, 0)
    mask = e.dropout_mask(group, len(x)) if group.dropout and e.training and group.rank else None
    inputs, jobs = _low_ranks(e, x, group, routing, mask), []
    for expert, low, high in routing.spans:
        one = group.of(expert)
        jobs += [
            partial(forward_tile, e, inputs[low:high], one, index, a, b, y[low:high])
            for index, a, b in forward_pieces(one, e.sizes)
        ]
    e.workers.run(jobs)
    bounds = np.cumsum([0, *(w.expert_features for w in group.weights)]).tolist()
    return tuple(y[:, a:b] for a, b in zip(bounds, bounds[1:]))


def expert_linear_backward(e, dys, x: np.ndarray | None, group: Experts, routing: Routing, need_dx: bool = True):
    dy, rank = e.joined(tuple(e.view(d) for d in dys), routing.router.used), group.rank
    mask = e.dropout_mask(group, len(dy)) if group.dropout and e.training and rank else None
    inputs = _low_ranks(e, x, group, routing, mask) if group.trains_pairs else None
    if rank:
        dy = e.extend(dy, rank, routing.router.used)
        e.workers.run([partial(_into_rank, dy, group.of(i), a, b) for i, a, b in routing.spans])
    dx = _rows(e, routing, group.in_features, 0) if need_dx else None
    jobs: list[Job] = []
    for expert, low, high in routing.spans:
        one, rows = group.of(expert), slice(low, high)
        if group.trains:
            jobs += gradient_jobs(e, dy[rows], x[rows], one)
        if need_dx:
            jobs += _input_jobs(e, dy[rows], one, dx[rows], None if mask is None else mask[rows])
        if group.trains_pairs:
            jobs += _pair_jobs(e, dy[rows], x[rows], inputs[rows], one, None if mask is None else mask[rows])
    e.workers.run(jobs)
    return dx


def _into_rank(dy, one: Group, low: int, high: int, number: int) -> None:
    into_rank(dy, one, low, high)


def _input_jobs(e, dy, one: Group, dx, mask) -> list[Job]:
    """What makes dx of one expert's slots; a streamed expert is read once, by the one who uses it."""
    downs = scaled_down(one) if one.rank else np.empty((0, one.in_features), np.float32)
    cuts = list(backward_pieces(one, e.sizes))

    def work(some: list, number: int) -> None:
        raw = _read(e, one, number)
        for low, high in some:
            backward_tile(e, dy, one, downs, low, high, raw, dx, mask is None, number)
            if mask is not None:
                through = dy[:, one.width : one.width + one.rank] @ downs[:, low:high]
                dx[:, low:high] += through * (mask[:, low:high] * np.float32(1.0 / (1.0 - one.dropout)))

    if any(w.needs_raw() for w in one.weights):
        return [partial(work, cuts)]
    return [partial(work, [cut]) for cut in cuts]


def _read(e, one: Group, number: int) -> tuple:
    """The bytes of one expert's streamed matrices, in the worker's own buffer."""
    if not any(w.needs_raw() for w in one.weights):
        return (None,) * len(one.weights)
    whole, out, at = e.raw(number, sum(w.nbytes for w in one.weights)), [], 0
    for weight in one.weights:
        out.append(whole[at : at + weight.nbytes])
        weight.read_rows(0, weight.out_features, out[-1])
        at += weight.nbytes
    return tuple(out)


def _pair_jobs(e, dy, x, inputs, one: Group, mask) -> list[Job]:
    """What adds to the gradients of one expert's pairs."""
    jobs: list[Job] = [
        partial(pair_down, e, dy, x, one, low, high, mask)
        for low, high in pieces(0, one.in_features, piece(one.in_features, GRADIENT, 16), 16)
    ]
    for index, pair in enumerate(one.pairs):
        if pair is not None:
            jobs += [
                partial(pair_up, e, dy, inputs, one, index, low, high)
                for low, high in pieces(0, pair.b.shape[0], piece(pair.b.shape[0], GRADIENT, 16), 16)
            ]
    return jobs
