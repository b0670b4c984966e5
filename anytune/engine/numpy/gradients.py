"""Gradients of what is not low-rank: matrices, biases, norms' gains and the embedding table."""

from __future__ import annotations

import numpy as np

from .workers import share


def group_gradients(e, dys: np.ndarray, x: np.ndarray, group) -> None:
    """dW += dyᵀ x and db += the sum of dy's rows, for what is trained; dys [T, width or more], x [T, in]."""
    if not any(w.gradient is not None for w in group.weights) and not any(g is not None for g in group.bias_gradients):
        return
    step = gradient_rows(group, e.sizes)

    def work(number: int) -> None:
        low, high = share(group.width, number, e.workers.count, 16)
        for weight, bias, start, end in zip(group.weights, group.bias_gradients, group.bounds, group.bounds[1:]):
            begin, stop = max(low, start), min(high, end)
            if bias is not None and begin < stop:
                bias[begin - start : stop - start] += dys[:, begin:stop].sum(0)
            for first in range(begin, stop, step) if weight.gradient is not None else ():
                last = min(first + step, stop)
                piece = e.scratch(number, "gradient", (last - first) * group.in_features).reshape(last - first, -1)
                np.matmul(dys[:, first:last].T, x, out=piece)
                e.kernels.add_scaled(piece, 1.0, weight.gradient[first - start : last - start])

    e.spread(work, x.shape[0] * group.width * group.in_features)


def gradient_rows(group, sizes) -> int:
    """Rows of a matrix's gradient that are made at once: as many as a tile of the forward has."""
    return max(16, sizes.tile // group.in_features)


def gain_gradient(e, dy: np.ndarray, x: np.ndarray, eps: float, into: np.ndarray) -> None:
    """into += the sum over rows and heads of dy * x / rms(x). Workers' sums are added in their order."""
    heads, parts = x.shape[1] // into.shape[0], np.zeros((e.workers.count, into.shape[0]), np.float32)

    def work(number: int) -> None:
        low, high = share(x.shape[0], number, e.workers.count, 16)
        if low < high:
            e.kernels.gain_gradient(dy[low:high], x[low:high], eps, heads, parts[number])

    e.spread(work, x.size)
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
