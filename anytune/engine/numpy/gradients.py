"""Gradients of what is not low-rank: matrices, biases, norms' gains and the embedding table."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from .workers import Job, piece, pieces


def gradient_jobs(e, dys: np.ndarray, x: np.ndarray, group) -> list[Job]:
    """What makes dW += dyᵀ x and db += the sum of dy's rows, for what is trained; dys [T, width or more], x [T, in]."""
    return [partial(_rows, e, dys, x, group, *place) for place in gradient_pieces(group, e.sizes)]


def gradient_pieces(group, sizes) -> Iterator[tuple[int, int, int]]:
    """(number of the linear, first row, last row) of each piece of a trained matrix's or bias's gradient."""
    most = min(piece(group.width, 96, 16), max(16, sizes.tile // group.in_features))
    for index, (weight, bias) in enumerate(zip(group.weights, group.bias_gradients)):
        if weight.gradient is not None or bias is not None:
            for low, high in pieces(0, weight.out_features, most, 16):
                yield index, low, high


def _rows(e, dys, x, group, index: int, low: int, high: int, number: int) -> None:
    weight, bias, start = group.weights[index], group.bias_gradients[index], group.bounds[index]
    mine = dys[:, start + low : start + high]
    if bias is not None:
        bias[low:high] += mine.sum(0)
    if weight.gradient is not None:
        part = e.scratch(number, "gradient", (high - low) * group.in_features).reshape(high - low, -1)
        np.matmul(mine.T, x, out=part)
        e.kernels.add_scaled(part, 1.0, weight.gradient[low:high])


def gain_gradient(e, dy: np.ndarray, x: np.ndarray, eps: float, into: np.ndarray) -> None:
    """into += the sum over rows and heads of dy * x / rms(x), in pieces of rows whose sums are added in their order."""
    cuts = list(pieces(0, x.shape[0], piece(x.shape[0], 64)))
    heads, parts = x.shape[1] // into.shape[0], np.zeros((len(cuts), into.shape[0]), np.float32)

    def work(index: int, number: int) -> None:
        low, high = cuts[index]
        e.kernels.gain_gradient(dy[low:high], x[low:high], eps, heads, parts[index])

    e.workers.run([partial(work, index) for index in range(len(cuts))], x.size < e.SMALL)
    into += parts.sum(0)


def embed_backward(e, dx: np.ndarray, ids: np.ndarray, scale: float, into: np.ndarray) -> None:
    """into[ids] += scale * dx. A token's places are added in their order, so that sums do not depend on threads."""
    order = np.argsort(ids, kind="stable")
    tokens, firsts = np.unique(ids[order], return_index=True)
    bounds = [*firsts.tolist(), len(order)]

    def rows(low: int, high: int) -> None:
        for place in range(low, high):
            mine = order[bounds[place] : bounds[place + 1]]
            into[tokens[place]] += np.float32(scale) * (dx[mine[0]] if len(mine) == 1 else dx[mine].sum(0))

    e.workers.rows(len(tokens), rows, 64)
