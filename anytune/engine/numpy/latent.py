"""Latent attention's heads: their rope columns first, keys of which all heads share those, values as wide as keys."""

from __future__ import annotations

from functools import partial

import numpy as np

from anytune.engine.shapes import LatentHeads


def _heads(x: np.ndarray, count: int) -> np.ndarray:
    """[n, count * size] -> [n, count, size], a view."""
    return x.reshape(len(x), count, -1)


def latent_heads(e, q: np.ndarray, kv: np.ndarray, shared: np.ndarray, shape: LatentHeads) -> tuple:
    """As offered.py has it."""
    tokens, s, rope = len(q), shape, shape.rope
    made = tuple(e.array(tokens, s.heads * s.size) for _ in range(3))

    def rows(low: int, high: int) -> None:
        given, both = _heads(q[low:high], s.heads), _heads(kv[low:high], s.heads)
        queries, keys, values = (_heads(x[low:high], s.heads) for x in made)
        queries[:, :, :rope], queries[:, :, rope : s.keys] = given[:, :, s.nope :], given[:, :, : s.nope]
        keys[:, :, :rope], keys[:, :, rope : s.keys] = shared[low:high, None], both[:, :, : s.nope]
        values[:, :, : s.value] = both[:, :, s.nope :]
        queries[:, :, s.keys :] = keys[:, :, s.keys :] = values[:, :, s.value :] = 0

    e.workers.rows(tokens, rows, 64)
    return made


def latent_heads_backward(e, dq: np.ndarray, dk: np.ndarray, dv: np.ndarray, shape: LatentHeads) -> tuple:
    """As offered.py has it."""
    tokens, s, rope = len(dq), shape, shape.rope
    made = e.array(tokens, s.heads * s.keys), e.array(tokens, s.heads * (s.nope + s.value)), e.array(tokens, rope)

    def rows(low: int, high: int) -> None:
        queries, keys, values = (_heads(x[low:high], s.heads) for x in (dq, dk, dv))
        given, both = (_heads(x[low:high], s.heads) for x in made[:2])
        given[:, :, s.nope :], given[:, :, : s.nope] = queries[:, :, :rope], queries[:, :, rope : s.keys]
        both[:, :, : s.nope], both[:, :, s.nope :] = keys[:, :, rope : s.keys], values[:, :, : s.value]
        np.sum(keys[:, :, :rope], axis=1, out=made[2][low:high])

    e.workers.rows(tokens, rows, 64)
    return made


def resize_heads(e, x: np.ndarray, heads: int, size: int) -> np.ndarray:
    """As offered.py has it."""
    out = e.array(len(x), heads * size)

    def rows(low: int, high: int) -> None:
        given, made = _heads(x[low:high], heads), _heads(out[low:high], heads)
        kept = min(size, given.shape[2])
        made[:, :, :kept], made[:, :, kept:] = given[:, :, :kept], 0

    e.workers.rows(len(x), rows, 64)
    return out


def latent_matrix(e, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """As offered.py has it."""
    return np.concatenate([k.swapaxes(1, 2), v], axis=1).reshape(-1, k.shape[1])


def head_product(e, x: np.ndarray, matrix, heads: int, low: int, high: int, back: bool) -> np.ndarray:
    """As offered.py has it."""
    each, columns = matrix.out_features // heads, matrix.in_features
    size = columns if back else high - low
    out = e.array(len(x), heads * size)
    given, made = _heads(x, heads), _heads(out, heads)

    def work(head: int, number: int) -> None:
        first, last = head * each + low, head * each + high
        dense = matrix.dense()
        if dense is not None:
            tile = dense[first:last]
        else:
            tile = e.scratch(number, "tile", (last - first) * columns).reshape(-1, columns)
            matrix.rows(first, last, tile, lambda count: e.raw(number, count))
        made[:, head] = given[:, head] @ (tile if back else tile.T)

    e.workers.run([partial(work, head) for head in range(heads)], len(x) * matrix.out_features * columns < e.SMALL)
    return out
