"""Linears and logits for a few tokens at a time: generation reads every weight once a token.

With so few rows the product is bound by memory, so weights held as float32 are used where they lie, and the
low-rank part is added afterwards.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from .linear import COLUMNS, Group
from .workers import piece, pieces

PIECE = 1 << 18  # weights of a piece, at least


def linear_decode(e, x: np.ndarray, group: Group) -> tuple[np.ndarray, ...]:
    """As linear(), for few rows and no backward."""
    y = e.array(x.shape[0], group.width)
    _product(e, x, group, y)
    return group.split(y)


def logits(e, h: np.ndarray, head: Group) -> np.ndarray:
    """h: [n, d] -> float32 [n, vocab], an array of the caller's own."""
    out = np.empty((h.shape[0], head.width), np.float32)
    _product(e, h, head, out)
    if head.cap:
        e.kernels.cap(out, 1.0, head.cap, out, False)
    return out


def _product(e, x: np.ndarray, group: Group, y: np.ndarray) -> None:
    features, jobs = group.in_features, []
    downs = [None if s is None else (x @ s.a.T) * np.float32(s.scale) for s in group.pairs]
    whole = piece(group.width, max(COLUMNS, PIECE // features), 16)
    for index, (weight, start) in enumerate(zip(group.weights, group.bounds)):
        dense = weight.dense()  # float32 weights are used where they lie, blocks a tile at a time
        most = whole if dense is not None else min(whole, max(16, e.sizes.tile // features))
        jobs += [
            partial(_piece, e, x, group, index, dense, downs[index], low, high, y[:, start + low : start + high])
            for low, high in pieces(0, weight.out_features, most, 16)
        ]
    e.workers.run(jobs, x.shape[0] * group.width * features < e.SMALL)


def _piece(e, x, group: Group, index: int, dense, down, low: int, high: int, out: np.ndarray, number: int) -> None:
    if dense is not None:
        tile = dense[low:high]
    else:
        tile = e.scratch(number, "tile", (high - low) * group.in_features).reshape(high - low, -1)
        group.weights[index].rows(low, high, tile, lambda size: e.raw(number, size))
    np.matmul(x, tile.T, out=out)
    if down is not None:
        out += down @ group.pairs[index].b[low:high].T
    if (bias := group.biases[index]) is not None:
        out += bias[low:high]


def cache(e, slots: int, context: int, width: int) -> np.ndarray:
    return np.zeros((slots, context, width), np.float32)  # zero pages: memory comes as tokens do


def state(e, slots: int, size: int) -> np.ndarray:
    return np.zeros((slots, size), np.float32)


def places(e, spans) -> list[tuple[int, int, int, int]]:
    return list(spans)


def store(e, cache: np.ndarray, places, rows: np.ndarray) -> None:
    for slot, low, high, position in places:
        cache[slot, position : position + high - low] = rows[low:high]


def decode(e, body, ids, spans, rows):
    e.begin(np.array([0, len(ids)], np.int32), 0, (0, 0, 0))
    positions = np.concatenate([np.arange(p, p + high - low, dtype=np.int32) for _, low, high, p in spans])
    return body(e.integers(ids), positions, spans, e.integers(rows) if len(rows) else None)
