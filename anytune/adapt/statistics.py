"""Sums over tokens of what goes into a product and of what its outputs lack: all that a closed form needs.

Tokens themselves are kept only where they are fewer than the columns of the product's input, and then for one product
at a time: the dual form needs less memory there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from anytune.adapt.closed import Equations

DUAL = 0.8  # of the columns: up to so many tokens their own Gram matrix is the smaller problem


class GramSums:
    """Primal: G = Σ w xxᵀ, float64 [in, in], and C = Σ w x rᵀ, float64 [in, out]."""

    def __init__(self, algebra: Any, columns: int, outputs: int):
        self.algebra, self.tokens = algebra, 0
        self.gram, self.cross = algebra.zeros(columns, columns), algebra.zeros(columns, outputs)

    def add(self, x: Any, missing: Any | None, weight: float) -> None:
        """Inputs float32 [tokens, in], what their outputs lack [tokens, out] (None: nothing), and a token's weight."""
        self.algebra.add_gram(self.gram, x, weight)
        if missing is not None:
            self.algebra.add_cross(self.cross, x, missing, weight)
        self.tokens += len(x)

    def scale(self, factor: float) -> None:
        """Multiply all weights so far."""
        self.gram *= factor
        self.cross *= factor

    def toward(self, prior: Any) -> None:
        """Leave out what the change `prior` [out, in], float32, does already: C -= G Eᵀ."""
        self.algebra.mirror(self.gram)
        self.cross -= self.gram @ self.algebra.double(prior).T

    def equations(self) -> Equations:
        self.algebra.mirror(self.gram)
        return Equations(self.algebra, self.gram, self.cross)


class TokenRows:
    """Dual: the tokens' own rows, weighted: Z [m, in] and what their outputs lack R [m, out], float32."""

    def __init__(self, algebra: Any, columns: int, outputs: int):
        self.algebra, self.columns, self.outputs, self.tokens = algebra, columns, outputs, 0
        self.inputs: list[Any] = []
        self.missing: list[Any] = []

    def add(self, x: Any, missing: Any | None, weight: float) -> None:
        root = float(weight) ** 0.5
        self.inputs.append(x * root)
        self.missing.append(
            missing * root if missing is not None else self.algebra.single(self.algebra.zeros(len(x), self.outputs))
        )
        self.tokens += len(x)

    def scale(self, factor: float) -> None:
        root = factor**0.5
        self.inputs, self.missing = ([part * root for part in parts] for parts in (self.inputs, self.missing))

    def toward(self, prior: Any) -> None:
        self.missing = [missing - x @ prior.T for x, missing in zip(self.inputs, self.missing)]

    def equations(self) -> Equations:
        la = self.algebra
        z, r = la.concatenate(self.inputs, 0), la.concatenate(self.missing, 0)
        self.inputs, self.missing = [], []
        return Equations(la, None, None, z, r)


def sums_for(
    algebra: Any, columns: int, widths: Sequence[int], tokens: int, tight: bool = False
) -> GramSums | TokenRows:
    """What is quicker for so many tokens, guarded ones included; `tight`: what takes less memory. widths: outputs of
    each product of the group."""
    fewer = _dual_bytes(columns, widths, tokens) < _primal_bytes(columns, widths)
    return (TokenRows if (fewer if tight else tokens < DUAL * columns) else GramSums)(algebra, columns, sum(widths))


def sum_bytes(columns: int, widths: Sequence[int], tokens: int) -> int:
    """Bytes that sums and their solution take where memory is tight."""
    return min(_dual_bytes(columns, widths, tokens), _primal_bytes(columns, widths))


def _dual_bytes(columns: int, widths: Sequence[int], tokens: int) -> int:
    """Rows in pieces and as one, their Gram matrix, and of one product at a time its solution, change and image."""
    one = max(widths)
    return 8 * tokens * (columns + sum(widths)) + 8 * tokens * tokens + 8 * tokens * one + 8 * columns * one


def _primal_bytes(columns: int, widths: Sequence[int]) -> int:
    """G, C, and of one product at a time its solution, change and image."""
    return 8 * columns * columns + 8 * columns * sum(widths) + 16 * columns * max(widths)
