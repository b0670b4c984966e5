"""The formats that are found by search, through the compiled kernels or, without numba, the same code in NumPy."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from anytune.gguf.encode import affine, pack, symmetric

PLAIN_BLOCKS = 1024  # blocks at a time in NumPy: the tiles stay in the cache
_compiling = threading.Lock()


@dataclass(frozen=True)
class Search:
    """fit: the search on tiles; numbers: of a block's scales and factors; sums: rows that fit works in."""

    fit: Callable
    weights: int
    numbers: int
    sums: int
    pack: Callable[[np.ndarray, np.ndarray], np.ndarray]


SEARCHES = {
    "Q4_0": Search(symmetric.q4_0, 32, 1, symmetric.KINDS, pack.q4_0),
    "Q5_0": Search(symmetric.q5_0, 32, 1, symmetric.KINDS, pack.q5_0),
    "Q4_1": Search(affine.q4_1, 32, 2, affine.KINDS, pack.q4_1),
    "Q5_1": Search(affine.q5_1, 32, 2, affine.KINDS, pack.q5_1),
    "Q2_K": Search(affine.q2_k, 256, 34, 16 * affine.KINDS, pack.q2_k),
    "Q3_K": Search(symmetric.q3_k, 256, 17, 16 * symmetric.KINDS, pack.q3_k),
    "Q4_K": Search(affine.q4_k, 256, 18, 8 * affine.KINDS, pack.q4_k),
    "Q5_K": Search(affine.q5_k, 256, 18, 8 * affine.KINDS, pack.q5_k),
    "Q6_K": Search(symmetric.q6_k, 256, 17, 16 * symmetric.KINDS, pack.q6_k),
    "IQ4_NL": Search(symmetric.iq4_nl, 32, 1, symmetric.KINDS, pack.iq4_nl),
    "IQ4_XS": Search(symmetric.iq4_xs, 256, 9, 8 * symmetric.KINDS, pack.iq4_xs),
}


def search(name: str, x: np.ndarray, w: np.ndarray, compiled: bool | None = None) -> np.ndarray:
    """Blocks for x, float32 [n, weights], with importance w of the same shape: uint8 [n, type_size].

    compiled: None takes numba if it is installed. Both ways give the same bits.
    """
    how = SEARCHES[name]
    q, out = np.empty(x.shape, np.uint8), np.empty((len(x), how.numbers), np.float32)
    run = None if compiled is False else _kernel(name)
    if run is None:
        for lo in range(0, len(x), PLAIN_BLOCKS):
            _plain(
                how,
                x[lo : lo + PLAIN_BLOCKS],
                w[lo : lo + PLAIN_BLOCKS],
                q[lo : lo + PLAIN_BLOCKS],
                out[lo : lo + PLAIN_BLOCKS],
            )
    else:
        run(np.ascontiguousarray(x), np.ascontiguousarray(w), q, out)
    return how.pack(q, out)


def _kernel(name: str) -> Callable | None:
    with _compiling:  # several threads ask at once, and compiling takes seconds
        return _compiled(name)


@functools.cache
def _compiled(name: str) -> Callable | None:
    try:
        from anytune.gguf.encode import compiled
    except ImportError:
        return None
    return compiled.kernel(name)


def _plain(how: Search, x: np.ndarray, w: np.ndarray, q: np.ndarray, out: np.ndarray) -> None:
    levels, numbers = np.empty(x.T.shape, np.float32), np.empty(out.T.shape, np.float32)
    with np.errstate(over="ignore"):
        how.fit(
            np.ascontiguousarray(x.T),
            np.ascontiguousarray(w.T),
            levels,
            numbers,
            np.empty((how.sums, len(x)), np.float32),
        )
    q[:], out[:] = levels.T, numbers.T
