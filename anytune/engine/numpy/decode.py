"""Linears and logits for a few tokens at a time: generation reads every weight once a token.

With so few rows the product is bound by memory, so weights held as float32 are used where they lie, and the
low-rank part is added afterwards.
"""

from __future__ import annotations

import numpy as np

from .linear import Group
from .workers import share


def linear_decode(e, x: np.ndarray, group: Group) -> tuple[np.ndarray, ...]:
    """As linear(), for few rows and no backward."""
    y = e.array(x.shape[0], group.width)
    _product(e, x, group, y)
    return group.split(y)


def logits(e, h: np.ndarray, head: Group) -> np.ndarray:
    """h: [n, d] -> float32 [n, vocab], an array of the caller's own."""
    out = np.empty((h.shape[0], head.width), np.float32)
    _product(e, h, head, out)
    return out


def _product(e, x: np.ndarray, group: Group, y: np.ndarray) -> None:
    step = max(16, e.sizes.tile // group.in_features)
    downs = [None if s is None else (x @ s.a.T) * np.float32(s.scale) for s in group.pairs]

    def work(number: int) -> None:
        low, high = share(group.width, number, e.workers.count, 16)
        for index, (start, end) in enumerate(zip(group.bounds, group.bounds[1:])):
            weight, pair, bias = group.weights[index], group.pairs[index], group.biases[index]
            dense = weight.dense()
            # float32 weights are used where they lie, all at once; blocks a tile at a time
            stride = max(1, high - low) if dense is not None else step
            for first in range(max(low, start), min(high, end), stride):
                last = min(first + stride, high, end)
                rows = slice(first - start, last - start)
                if dense is not None:
                    tile = dense[rows]
                else:
                    tile = e.scratch(number, "tile", (last - first) * group.in_features)
                    tile = tile.reshape(last - first, -1)
                    weight.rows(rows.start, rows.stop, tile, lambda size: e.raw(number, size))
                out = y[:, first:last]
                np.matmul(x, tile.T, out=out)
                if pair is not None:
                    out += downs[index] @ pair.b[rows].T
                if bias is not None:
                    out += bias[rows]

    e.spread(work, x.shape[0] * group.width * group.in_features)
