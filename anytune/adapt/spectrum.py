"""What each rank of a known change is worth to the model's words, and the best change of any lower rank.

Of D = B A the best change of rank k in the metrics of inputs G and outputs H, which makes
tr (D' - D)ᵀ H (D' - D) G least, lies between the same two spaces: D' = B X A. So of G and H only A G Aᵀ and Bᵀ H B are
needed, matrices of D's own rank: with Bᵀ H B = L Lᵀ, A G Aᵀ = K Kᵀ and the singular values of Lᵀ K = U Σ Vᵀ,
X = L⁻ᵀ U Σ Vᵀ K⁻¹.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from anytune.adapt.closed import Pair
from anytune.adapter.adapter import Adapter

INPUTS, OUTPUTS = 1e-4, 1e-2  # damping of G and H, of the means of their diagonals


@dataclass
class Factors:
    """A change as b [out, R] times a [R, in] with orthonormal columns of b and rows of a scaled: plain float64."""

    a: np.ndarray
    b: np.ndarray

    @property
    def cost(self) -> int:
        """Parameters of one rank."""
        return self.a.shape[1] + self.b.shape[0]


def factors_of(adapter: Adapter, tolerance: float = 1e-7) -> dict[str, Factors]:
    """Each change by its singular vectors: b = U Σ, a = Vᵀ, without ranks that are nothing."""
    found = {}
    for name, (a, b) in adapter.tensors.items():
        q, r = np.linalg.qr(a.T.astype(np.float64))
        u, s, v = np.linalg.svd(b.astype(np.float64) * adapter.scale @ r.T, full_matrices=False)
        keep = max(1, int((s > tolerance * max(s[0], 1e-300)).sum()))
        found[name] = Factors(v[:keep] @ q.T, u[:, :keep] * s[:keep])
    return found


def difference(base: Any, tuned: Any, most: int) -> dict[str, Factors]:
    """The difference of two files' linears, to a rank of `most`."""
    found = {}
    for name, info in base.tensors.items():
        if name.startswith("blk.") and len(info.shape) == 2:
            change = tuned.float32(name) - base.float32(name)
            if np.abs(change).max() > 0:
                u, s, v = np.linalg.svd(change, full_matrices=False)
                keep = min(most, len(s))
                found[name] = Factors(v[:keep].astype(np.float64), (u[:, :keep] * s[:keep]).astype(np.float64))
    return found


class Spectrum:
    """Sums of A x (A x)ᵀ and Bᵀ g (Bᵀ g)ᵀ over tokens, of every change; see() is what fisher.look_back() calls."""

    def __init__(self, factors: Mapping[str, Factors], algebra: Any):
        self.factors, self.algebra = factors, algebra
        self.sides = {name: (algebra.array(f.a.T), algebra.array(f.b)) for name, f in factors.items()}
        self.sums = {name: [algebra.zeros(len(f.a), len(f.a)) for _ in range(2)] for name, f in factors.items()}
        self.squares = {name: [0.0, 0.0] for name in factors}

    def see(self, name: str, x: Any, dy: Any) -> None:
        if name not in self.factors:
            return
        for side, (projection, values) in enumerate(zip(self.sides[name], (x, dy))):
            small = values @ projection
            self.algebra.add_gram(self.sums[name][side], small, 1.0)
            self.squares[name][side] += float((values * values).sum())

    def values(self) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """{tensor: (worth [R], left [R, R], right [R, R])}: rank k is b · left[:, :k] times right[:k] · a."""
        return {name: self._of(name) for name in self.factors}

    def _of(self, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        factors, found = self.factors[name], []
        for side, (share, width) in enumerate(((INPUTS, factors.a.shape[1]), (OUTPUTS, factors.b.shape[0]))):
            total = self.sums[name][side]
            self.algebra.mirror(total)
            plain = factors.a @ factors.a.T if side == 0 else factors.b.T @ factors.b
            damping = share * self.squares[name][side] / width or 1.0
            found.append(_root(np.asarray(self.algebra.host(total), np.float64) + damping * plain))
        inner, outer = found
        u, s, v = np.linalg.svd(outer.T @ inner)
        return s, np.linalg.solve(outer.T, u), (s[:, None] * v) @ np.linalg.inv(inner)


def _root(matrix: np.ndarray) -> np.ndarray:
    """A lower factor of a positive matrix, whose smallest eigenvalues may have been rounded away."""
    matrix = (matrix + matrix.T) / 2
    size = np.trace(matrix) / len(matrix) or 1.0
    for share in (1e-14, 1e-12, 1e-10, 1e-8):
        try:
            return np.linalg.cholesky(matrix + share * size * np.eye(len(matrix)))
        except np.linalg.LinAlgError:
            continue
    values, vectors = np.linalg.eigh(matrix)
    return np.linalg.cholesky((vectors * np.maximum(values, 1e-8 * size)) @ vectors.T)


def pairs_of(factors: Mapping[str, Factors], values: Mapping[str, tuple], ranks: Mapping[str, int]) -> dict[str, Pair]:
    """The changes cut to `ranks` by values(); full ranks are the changes themselves."""
    made = {}
    for name, rank in ranks.items():
        worth, left, right = values[name]
        f = factors[name]
        if rank >= len(worth):
            made[name] = Pair(f.a.astype(np.float32), f.b.astype(np.float32), worth)
        else:
            made[name] = Pair(
                (right[:rank] @ f.a).astype(np.float32), (f.b @ left[:, :rank]).astype(np.float32), worth[:rank]
            )
    return made


def plain_values(factors: Mapping[str, Factors]) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The same without any data: singular values alone (factors_of() has them in order)."""
    return {name: (np.linalg.norm(f.b, axis=0), np.eye(len(f.a)), np.eye(len(f.a))) for name, f in factors.items()}
