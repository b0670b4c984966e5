"""The searches compiled: sixteen blocks at a time, each kernel made when it is first asked for.

    kernel(name)(x, w, q, out)

x, w: float32 [n, weights], n blocks and the importance of their weights; q: uint8 [n, weights] and out: float32
[n, numbers] are written. Each kernel spells out its call, since numba cannot cache what a factory makes.
Numba keeps compiled code by this file's date: touch it after a change to the searches.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numba import njit, types

from anytune.gguf.encode import affine, symmetric
from anytune.simd import vectors_numba  # noqa: F401 (it adds arithmetic on lanes)
from anytune.simd.registers import LANES

ROWS = types.Array(types.float32, 2, "C", readonly=True)
SIGNATURE = types.void(ROWS, ROWS, types.Array(types.uint8, 2, "C"), types.Array(types.float32, 2, "C"))


@njit
def _run(fit, sums, x, w, q, out):
    """Sixteen blocks at a time into tiles, through `fit`, and back; the last tile repeats its last block."""
    n, weights = x.shape
    numbers = out.shape[1]
    tiles = np.empty((3, weights, LANES), np.float32)
    result, s = np.empty((numbers, LANES), np.float32), np.empty((sums, LANES), np.float32)
    for first in range(0, n, LANES):
        for lane in range(LANES):
            block = min(first + lane, n - 1)
            for i in range(weights):
                tiles[0, i, lane], tiles[1, i, lane] = x[block, i], w[block, i]
        fit(tiles[0], tiles[1], tiles[2], result, s)
        for lane in range(min(LANES, n - first)):
            for i in range(weights):
                q[first + lane, i] = np.uint8(tiles[2, i, lane])
            for i in range(numbers):
                out[first + lane, i] = result[i, lane]


def q4_0(x, w, q, out):
    _run(symmetric.q4_0, symmetric.KINDS, x, w, q, out)


def q5_0(x, w, q, out):
    _run(symmetric.q5_0, symmetric.KINDS, x, w, q, out)


def q3_k(x, w, q, out):
    _run(symmetric.q3_k, 16 * symmetric.KINDS, x, w, q, out)


def q6_k(x, w, q, out):
    _run(symmetric.q6_k, 16 * symmetric.KINDS, x, w, q, out)


def iq4_nl(x, w, q, out):
    _run(symmetric.iq4_nl, symmetric.KINDS, x, w, q, out)


def iq4_xs(x, w, q, out):
    _run(symmetric.iq4_xs, 8 * symmetric.KINDS, x, w, q, out)


def q4_1(x, w, q, out):
    _run(affine.q4_1, affine.KINDS, x, w, q, out)


def q5_1(x, w, q, out):
    _run(affine.q5_1, affine.KINDS, x, w, q, out)


def q2_k(x, w, q, out):
    _run(affine.q2_k, 16 * affine.KINDS, x, w, q, out)


def q4_k(x, w, q, out):
    _run(affine.q4_k, 8 * affine.KINDS, x, w, q, out)


def q5_k(x, w, q, out):
    _run(affine.q5_k, 8 * affine.KINDS, x, w, q, out)


def kernel(name: str) -> Callable:
    """The compiled search of format `name` (several seconds the first time, then kept on disk)."""
    function = globals()[name.lower()]
    try:
        return njit(SIGNATURE, nogil=True, cache=True)(function)
    except RuntimeError:  # no folder in which the compiled code could be kept
        return njit(SIGNATURE, nogil=True)(function)
