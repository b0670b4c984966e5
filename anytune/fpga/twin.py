"""The engine's arithmetic on a CPU, to the bit: what the RTL must compute, and its replacement in training.

Of one square (32 x 32 weights of one plane, 32 rows of the left operand):

    rows      acc[t, n] += f32(P[t, n] xs[t] d[n] f)      P = Σ_k xq[t, k] code[n, k], an integer
    columns   acc[t, k] += f32(P[t, k] zs[t] f)           P = Σ_n zq[t, n] code[n, k]; zq, zs = mx(y[t, n] d[n])

f32 rounds to nearest, ties to even, once; so does the addition. No subnormals: a summand or a sum that is smaller than
the least normal float32 is zero. Terms, blocks and planes are added in the schedule's order.

mx: the 32 products y d of a row as int8 times a power of two 2^(e-6), e the exponent of the largest of them, ties to
even, clipped to 127; zero where e - 6 < -126.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from anytune.fpga.formats import BLOCK, Matrix, Rounded
from anytune.fpga.schedule import Shape, parts

F = np.float32
LEAST = 2.0**-126
EDGE = LEAST - 2.0**-151  # what rounds up to the least normal number

Term = tuple["Rounded | np.ndarray", Matrix]


class Twin:
    """The engine's two products on the CPU. compiled: with Numba (None: if it is there); threads: of that form."""

    zeros = staticmethod(np.zeros)

    def __init__(self, compiled: bool | None = None, threads: int = 1):
        self.kernels = None
        if compiled is not False:
            try:
                from anytune.fpga import twin_compiled

                self.kernels = twin_compiled
            except ImportError:
                if compiled:
                    raise
        self.pool = ThreadPoolExecutor(threads) if threads > 1 and self.kernels else None
        self.threads = threads

    def rows(self, terms: Sequence[tuple[Rounded, Matrix]]) -> np.ndarray:
        """Σ x Wᵀ over terms (x Rounded [T, K], W [N, K]): float32 [T, N], all N of the padded matrix."""
        self._check("rows", terms)
        return self._sum("rows", terms, [_rounded(x) for x, _ in terms])

    def columns(self, terms: Sequence[tuple[np.ndarray, Matrix]]) -> np.ndarray:
        """Σ y W over terms (y float32 [T, N] of bfloat16's values, W [N, K]): float32 [T, K]."""
        self._check("columns", terms)
        return self._sum("columns", terms, [y.T.copy() for y, _ in terms])

    def _check(self, direction: str, terms: Sequence[Term]) -> None:
        check(direction, terms)

    def _sum(self, direction: str, terms: Sequence[Term], lefts: list) -> np.ndarray:
        """Part after part; inside this class operands and sums have tokens last."""
        shapes = [Shape.of(w) for _, w in terms]
        tokens = (lefts[0][0] if direction == "rows" else lefts[0]).shape[1]
        total = None
        for part in parts(direction, shapes):
            acc = self.zeros((shapes[0].groups(direction) * BLOCK, tokens), F)
            for term, low, high in part:
                self._add(direction, acc, lefts[term], terms[term][1], low, high)
            total = acc if total is None else total + acc
        return total.T.copy()

    def _add(self, direction: str, acc: np.ndarray, left, w: Matrix, low: int, high: int) -> None:
        factors = np.array(w.factors, np.float64)
        work: Callable[[int, int], None]
        if self.kernels is None:
            plain = _plain_rows if direction == "rows" else _plain_columns
            plain(acc, left, w, low, high)
            return
        if direction == "rows":

            def work(first: int, end: int) -> None:
                self.kernels.rows(acc, *left, w.codes, w.scales, factors, low, high, first, end)
        else:

            def work(first: int, end: int) -> None:
                self.kernels.columns(acc, left, w.codes, w.scales, factors, low, high, first, end)

        groups = len(acc) // BLOCK
        if self.pool is None or groups < 2:
            work(0, groups)
        else:
            cuts = [groups * i // self.threads for i in range(self.threads + 1)]
            list(self.pool.map(work, cuts, cuts[1:]))


def check(direction: str, terms: Sequence[Term]) -> None:
    """Raise ValueError for operands that do not fit each other, or that the engine cannot hold."""
    tokens = outputs = None
    for left, w in terms:
        data, size = (left.q, w.shape[1]) if direction == "rows" else (left, w.shape[0])
        out = w.shape[0] if direction == "rows" else w.shape[1]
        if data.shape[1] != size or tokens not in (None, len(data)) or outputs not in (None, out):
            raise ValueError(f"operands do not fit: {data.shape} and a matrix {w.shape}")
        tokens, outputs = len(data), out
        if direction == "columns":
            bits = left.astype(F, "C", copy=False).view(np.uint32)
            if (bits & 0xFFFF).any() or (bits & 0x7FFFFFFF).max(initial=0) >= 0x70000000:
                raise ValueError("gradients must be below 2^97 and have bfloat16's values: see formats.bf16")


def _rounded(x: Rounded) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(codes float32 [K, T], scales [K/32, T], sums of codes [K/32, T])."""
    codes = x.q.T.astype(F, "C")
    return codes, x.scale.T.copy(), codes.reshape(-1, BLOCK, codes.shape[1]).sum(1)


def flushed(x: np.ndarray) -> np.ndarray:
    """float64 rounded to float32, without subnormals."""
    return np.where(np.abs(x) < EDGE, F(0), x.astype(F))


def _accumulate(acc: np.ndarray, p: np.ndarray, scale: np.ndarray) -> None:
    total = acc + flushed(p.astype(np.float64) * scale)
    acc[:] = np.where(np.abs(total) < F(LEAST), F(0), total)


def _plain_rows(acc: np.ndarray, left, w: Matrix, low: int, high: int) -> None:
    codes, scale, sums = left
    for at, block in enumerate(range(low, high)):
        k = slice(BLOCK * block, BLOCK * block + BLOCK)
        for p in range(w.planes):
            ours = w.codes[p][:, k].astype(F) @ codes[k] if p < len(w.codes) else sums[block]
            _accumulate(acc, ours, w.scales[p][:, block, None].astype(np.float64) * w.factors[p] * scale[block])


def mx(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float64 [32, T] -> (int8's values [32, T], powers of two [T]), see the module's text."""
    peak = np.abs(z).max(0)
    exponent = np.frexp(peak)[1] - 1
    scale = np.where((peak == 0) | (exponent - 6 < -126), 0, np.ldexp(1.0, exponent - 6))
    q = np.rint(z / np.where(scale == 0, 1, scale))
    return np.where(scale == 0, 0, np.clip(q, -127, 127)), scale


def _plain_columns(acc: np.ndarray, y: np.ndarray, w: Matrix, low: int, high: int) -> None:
    wide = y.astype(np.float64)
    for block in range(low, high):
        n = slice(BLOCK * block, BLOCK * block + BLOCK)
        for column in range(w.shape[1] // BLOCK):
            k = slice(BLOCK * column, BLOCK * column + BLOCK)
            for p in range(w.planes):
                zq, zs = mx(wide[n] * w.scales[p][n, column, None])
                ours = w.codes[p][n, k].T.astype(np.float64) @ zq if p < len(w.codes) else zq.sum(0)
                _accumulate(acc[k], ours, zs * w.factors[p])
