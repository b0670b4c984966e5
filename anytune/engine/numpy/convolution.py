"""A causal convolution of each column for itself, within each example, forward and backward."""

from __future__ import annotations

import numpy as np


def convolve(e, x: np.ndarray, weight: np.ndarray, silu: bool) -> np.ndarray:
    """As base.py has it."""
    y = e.array(*x.shape)

    def rows(low: int, high: int) -> None:
        y[low:high] = _sums(x, weight, e.first, low, high)
        if silu:
            y[low:high] *= sigmoid(y[low:high])

    e.workers.rows(x.shape[0], rows, 32)
    return y


def _sums(x, weight, first, low: int, high: int) -> np.ndarray:
    """Rows low…high of the convolution; first: where each token's example begins."""
    kernel = weight.shape[1]
    y = x[low:high] * weight[:, -1]
    for back in range(1, kernel):
        begin = max(low, back)
        if begin < high:
            reaches = (np.arange(begin, high) - back >= first[begin:high])[:, None]
            y[begin - low :] += np.where(reaches, x[begin - back : high - back], 0) * weight[:, kernel - 1 - back]
    return y


def sigmoid(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-x))


def convolve_backward(e, dy, x, weight, silu: bool, into=None) -> np.ndarray:
    """As base.py has it."""
    tokens, kernel = x.shape[0], weight.shape[1]
    dx, dz = e.array(*x.shape), dy
    if silu:
        dz = e.array(*x.shape)

        def through(low: int, high: int) -> None:
            z = _sums(x, weight, e.first, low, high)
            s = sigmoid(z)
            dz[low:high] = dy[low:high] * s * (1 + z * (1 - s))

        e.workers.rows(tokens, through, 32)

    def rows(low: int, high: int) -> None:
        dx[low:high] = dz[low:high] * weight[:, -1]
        for back in range(1, kernel):
            end = min(high, tokens - back)
            if low < end:
                reaches = (np.arange(low, end) >= e.first[low + back : end + back])[:, None]
                dx[low:end] += np.where(reaches, dz[low + back : end + back], 0) * weight[:, kernel - 1 - back]

    e.workers.rows(tokens, rows, 32)
    if into is not None:
        _weight_gradient(e, dz, x, into)
    return dx


def _weight_gradient(e, dz, x, into) -> None:
    """into [n, kernel] += the sums over tokens. Columns are split, so that sums do not depend on threads."""
    tokens, kernel = x.shape[0], into.shape[1]

    def columns(low: int, high: int) -> None:
        for back in range(min(kernel, tokens)):
            reaches = (np.arange(tokens - back) >= e.first[back:])[:, None]
            into[low:high, kernel - 1 - back] += np.einsum(
                "tn,tn->n", np.where(reaches, dz[back:, low:high], 0), x[: tokens - back, low:high]
            )

    e.workers.rows(x.shape[1], columns, 16)


def convolve_cached(e, x, weight, silu: bool, cache: np.ndarray, places) -> np.ndarray:
    """As base.py has it; cache [slots, (kernel - 1) * n]: the last inputs of each sequence, oldest first."""
    y, before = e.array(*x.shape), weight.shape[1] - 1
    for slot, low, high, position in places:
        held = cache[slot].reshape(before, x.shape[1])
        window = np.concatenate([held if position else np.zeros_like(held), x[low:high]])
        first = np.zeros(len(window), np.int32)
        y[low:high] = _sums(window, weight, first, before, len(window))
        held[...] = window[len(window) - before :]
    if silu:
        y *= sigmoid(y)
    return y
