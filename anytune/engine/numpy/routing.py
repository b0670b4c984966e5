"""Which experts a token goes to: tokens sorted by the expert that they chose, weights, sums."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from anytune.engine.base import Router
from anytune.engine.shapes import LEAST_SUM


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


def slot_rows(e, routing: Routing, columns: int, row_padding: int | None = None) -> np.ndarray:
    """An array of a row a slot, of one size for all streams."""
    return e.array(len(routing.tokens), columns, row_padding, routing.router.used)


def dispatch(e, x: np.ndarray, routing: Routing) -> np.ndarray:
    out, tokens = slot_rows(e, routing, x.shape[1]), routing.tokens
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
    out, weights = slot_rows(e, routing, x.shape[1]), _slot_weights(routing)
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
