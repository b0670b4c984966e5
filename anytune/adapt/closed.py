"""Closed forms: ridge regression, and its best change of a given rank.

For inputs x with weights w, and r = what the outputs lack, the change D [out, in] that makes

    Σ w |r - D x|² + λ |D - E|²,   λ = ridge · mean of G's diagonal,   G = Σ w x xᵀ,

least is D = E + (C - G Eᵀ)ᵀ (G + λ I)⁻¹ with C = Σ w x rᵀ and a prior E (zero, or what is known of the change). Among
changes of rank k the one that loses least of it is U Uᵀ D, U the k leading eigenvectors of M = D (G + λ I) Dᵀ: the
objective of D' is that of D plus tr (D' - D)(G + λ I)(D' - D)ᵀ, and the projection is its Eckart-Young minimum. With a
metric H = L Lᵀ of the outputs (their Fisher matrix), U is of Lᵀ D and b = L⁻ᵀ U. No root of G is needed, since
M = D Wᵀ with W = D (G + λ I), which follows from C alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from anytune.engine.algebra import NotPositive
from anytune.errors import UserError

ROUNDS, SPARE = 8, 16  # of the subspace iteration; columns beyond the rank that make it converge
PIECE = 512  # columns
RAISES, FACTOR = 12, 10.0  # a Cholesky factorization that fails is tried again with so much more ridge, so often


@dataclass
class Pair:
    """b·a [out, in], with a float32 [rank, in] and b float32 [out, rank]; worth: float64 [rank], how much of the
    objective each rank is worth, as square roots, descending."""

    a: np.ndarray
    b: np.ndarray
    worth: np.ndarray

    def cut(self, rank: int) -> Pair:
        return Pair(self.a[:rank], self.b[:, :rank], self.worth[:rank])


@dataclass
class Equations:
    """G and C - G Eᵀ as sums, or the weighted tokens that they are sums over: z [m, in], r [m, out]; statistics.py.

    Solving uses the arrays up. ridge: what λ was then, of the mean of G's diagonal; raised: whether that is more than
    was asked for.
    """

    algebra: Any
    gram: Any | None
    cross: Any | None
    z: Any | None = None
    r: Any | None = None
    ridge: float = 0.0
    raised: bool = False
    mean: float = 0.0
    factored: Any = None

    @property
    def columns(self) -> int:
        return (self.gram if self.gram is not None else self.z).shape[-1]

    def factor(self, ridge: float) -> None:
        """Factor G + λ I, λ = ridge · mean of G's diagonal, or more where that is not positive. UserError."""
        la = self.algebra
        small = self.gram is None
        self.factored = la.double(self.z) @ la.double(self.z).T if small else self.gram
        self.mean = la.trace(self.factored) / self.columns
        if not np.isfinite(self.mean):
            raise UserError(
                "The activations contain NaN or infinity, so nothing can be fitted: the model overflows in this "
                "device's number format. Try --dtype f32 or another --device."
            )
        self.factored = self._factor(self.factored, ridge * self.mean or float(np.finfo(np.float64).tiny) ** 0.5)

    def part(self, low: int, high: int, prior: Any | None, moved: Any | None) -> tuple[Any, Any]:
        """(D, W = D (G + λ I)), float32 [high - low, in], of the outputs low…high. moved: E G of the prior E."""
        la = self.algebra
        if self.gram is None:
            r = self.r[:, low:high]
            change, along = la.single(la.substitute(self.factored, r).T) @ self.z, r.T @ self.z
        else:
            cross = self.cross[:, low:high]
            change, along = la.single(la.substitute(self.factored, cross)).T, la.single(cross).T
        if prior is None:
            return change, along
        return change + prior, along + moved + self.ridge * self.mean * prior

    def through(self, prior: Any) -> Any:
        """E G for a prior E, float32: to be asked for before factor()."""
        la = self.algebra
        return (prior @ self.z.T) @ self.z if self.gram is None else la.single(la.double(prior) @ self.gram)

    def _factor(self, g: Any, value: float) -> Any:
        """Cholesky's factor of g + value · I; where that is not positive, of g and more: `ridge` is what it took."""
        la, added, mean = self.algebra, 0.0, self.mean
        for attempt in range(RAISES):
            la.add_diagonal(g, value - added)
            added = value
            try:
                self.ridge, self.raised = value / (mean or 1.0), attempt > 0
                return la.factor(g)
            except NotPositive:
                value = max(value * FACTOR, 1e-12 * mean)
        raise UserError("The activations' Gram matrix cannot be factored with any ridge: it contains NaN.")


def ridge(
    equations: Equations,
    outputs: Sequence[int],
    rank: int | Sequence[int],
    share: float = 1e-2,
    priors: Sequence[Any] | None = None,
    metrics: Sequence[Any] | None = None,
    bases: Sequence[tuple[np.ndarray, np.ndarray | None]] | None = None,
) -> list[Pair]:
    """The best change of rank `rank` (at most; one for all, or of each) for the products that share these inputs.

    outputs: their widths, side by side in C. share: the ridge, of the mean of G's diagonal. priors: what each change
    [out, in] is drawn to; C is then of what they leave. metrics: of their outputs, float64 [out, out], positive. bases:
    for each product b [out, r] as it is to stay, and a left inverse of it (None for r = 0): only a is solved for.
    """
    moved = None if priors is None else [equations.through(prior) for prior in priors]
    equations.factor(share)
    ranks = [rank] * len(outputs) if isinstance(rank, int) else rank
    pairs, at = [], 0
    for number, width in enumerate(outputs):
        known = (None, None) if priors is None else (priors[number], moved[number])
        change, along = equations.part(at, at + width, *known)
        if bases is not None:
            pairs.append(_along(equations.algebra, change, *bases[number]))
        else:
            pairs.append(
                truncate(equations.algebra, change, along, ranks[number], None if metrics is None else metrics[number])
            )
        at += width
        del change, along  # before the next product's are made
    return pairs


def _along(la: Any, change: Any, b: np.ndarray, inverse: np.ndarray | None) -> Pair:
    """The part of `change` that a given b [out, r] can make."""
    if inverse is None:
        return Pair(np.zeros((0, change.shape[1]), np.float32), b, np.zeros(0))
    a = la.host(la.array(inverse) @ change)
    return Pair(a, b, np.linalg.norm(a.astype(np.float64), axis=1))


def truncate(la: Any, change: Any, moved: Any, rank: int, metric: Any | None = None) -> Pair:
    """The best change of rank `rank` for D = `change`, float32 [out, in], in the metric of inputs G and outputs H.

    moved: D G, float32 [out, in]. metric: H float64 [out, out], or None for the identity.
    """
    root = None
    if metric is not None:
        root = la.factor(metric + 0.0)  # of a copy: it is written over
        turn = la.single(la.lower(root)).T
        change, moved = turn @ change, turn @ moved
    out, columns = change.shape
    size = min(out, columns, rank + SPARE)
    q = la.orthonormal(la.normal(out, size))
    for _ in range(ROUNDS if size < out else 0):
        q = la.orthonormal(change @ (moved.T @ q))
    q = la.double(q)
    inner = 0.0
    for low in range(0, columns, PIECE):  # float64 copies a piece at a time
        part = slice(low, low + PIECE)
        inner = inner + (la.double(moved[:, part]).T @ q).T @ (la.double(change[:, part]).T @ q)
    values, vectors = la.eigh((inner + inner.T) / 2)
    u = q @ vectors[:, :rank]
    b = u if root is None else la.inverse_transposed(root, u)
    worth = np.sqrt(np.maximum(np.asarray(values[:rank], np.float64), 0))
    return Pair(la.host(la.single(la.single(u).T @ change)), la.host(la.single(b)), worth)


def allocate(worth: Mapping[str, np.ndarray], cost: Mapping[str, int], budget: int) -> dict[str, int]:
    """Ranks {tensor: rank} that are worth most in all, for at most `budget` parameters: greedy by worth² a parameter.

    worth: each tensor's values, descending; cost: parameters that a rank of it takes.
    """
    steps = sorted(
        ((float(value) ** 2 / cost[name], name) for name, values in worth.items() for value in values),
        key=lambda step: (-step[0], step[1]),
    )
    ranks, left = dict.fromkeys(worth, 0), budget
    for gain, name in steps:
        if gain > 0 and cost[name] <= left:
            ranks[name] += 1
            left -= cost[name]
    return ranks
