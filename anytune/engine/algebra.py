"""Linear algebra for closed forms: sums over tokens in float64, and what solves with them, on the host.

An engine's `algebra` is an object with these methods over arrays that know +, -, *, @, .T and slices; `lift` makes such
an array of an activation. torch/algebra.py has the same on a card.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

BLOCK = 256  # rows and columns of a tile: of a symmetric sum, and of a factorization
PIECE = 4096  # tokens that are summed in float32 before float64 takes over


class NotPositive(ArithmeticError):
    """A matrix that is to be factored has an eigenvalue that is not positive."""


class HostAlgebra:
    """NumPy. spread(work, pieces): runs work(0) … work(pieces - 1) side by side; None: one after the other.

    The results do not depend on how pieces are spread.
    """

    def __init__(self, spread: Callable[[Callable[[int], None], int], None] | None = None):
        self._spread = spread or (lambda work, pieces: [work(number) for number in range(pieces)])

    # -- arrays
    def zeros(self, rows: int, columns: int) -> np.ndarray:
        return np.zeros((rows, columns))

    def array(self, values: Any) -> np.ndarray:
        """float32 numbers of the host, here."""
        return np.asarray(values, np.float32)

    def double(self, x: np.ndarray) -> np.ndarray:
        return np.asarray(x, np.float64)

    def single(self, x: np.ndarray) -> np.ndarray:
        return np.asarray(x, np.float32)

    def host(self, x: np.ndarray) -> np.ndarray:
        return np.asarray(x)

    def concatenate(self, parts: list, axis: int) -> np.ndarray:
        return np.concatenate(parts, axis) if len(parts) > 1 else parts[0]

    def normal(self, rows: int, columns: int) -> np.ndarray:
        """float32 [rows, columns], the same numbers on every engine."""
        return np.random.default_rng(0).standard_normal((rows, columns)).astype(np.float32)

    def trace(self, g: np.ndarray) -> float:
        return float(np.trace(g, dtype=np.float64))

    def add_diagonal(self, g: np.ndarray, value: float) -> None:
        g.reshape(-1)[:: len(g) + 1] += value

    # -- sums
    def add_gram(self, into: np.ndarray, x: np.ndarray, weight: float) -> None:
        """into [n, n] += weight · xᵀx, for float32 x [tokens, n]: the tiles on and below the diagonal; see mirror()."""
        tiles = [(i, j) for i in range(0, len(into), BLOCK) for j in range(0, i + 1, BLOCK)]

        def work(number: int) -> None:
            i, j = tiles[number]
            for at in range(0, len(x), PIECE):
                part = x[at : at + PIECE]
                into[i : i + BLOCK, j : j + BLOCK] += weight * (part[:, i : i + BLOCK].T @ part[:, j : j + BLOCK])

        self._spread(work, len(tiles))

    def mirror(self, g: np.ndarray) -> None:
        """Complete a sum of add_gram(): what lies below the diagonal goes above it, too."""
        for i in range(0, len(g), BLOCK):
            g[i : i + BLOCK, i + BLOCK :] = g[i + BLOCK :, i : i + BLOCK].T

    def add_cross(self, into: np.ndarray, x: np.ndarray, y: np.ndarray, weight: float) -> None:
        """into [n, m] += weight · xᵀy."""

        def work(number: int) -> None:
            rows = slice(number * BLOCK, number * BLOCK + BLOCK)
            for at in range(0, len(x), PIECE):
                into[rows] += weight * (x[at : at + PIECE, rows].T @ y[at : at + PIECE])

        self._spread(work, -(-len(into) // BLOCK))

    # -- solving
    def factor(self, g: np.ndarray) -> np.ndarray:
        """Cholesky's lower factor of the symmetric g, written over it; what lies above the diagonal is not touched.
        Raises NotPositive, with g as it was."""
        n, diagonal = len(g), g.diagonal().copy()
        for i in range(0, n, BLOCK):
            end = min(i + BLOCK, n)
            corner = _corner(g[i:end, i:end])
            if corner is None:
                _restore(g, diagonal)
                raise NotPositive
            g[i:end, i:end] = np.triu(g[i:end, i:end], 1) + corner
            g[end:, i:end] = np.linalg.solve(corner, g[end:, i:end].T).T

            def work(number: int, end: int = end, below: np.ndarray = g[end:, i:end]) -> None:
                low = number * BLOCK
                high = min(low + BLOCK, n - end)
                part = below[low:high] @ below[:high].T
                g[end + low : end + high, end : end + low] -= part[:, :low]
                g[end + low : end + high, end + low : end + high] -= np.tril(part[:, low:])

            self._spread(work, -(-(n - end) // BLOCK))
        return g

    def substitute(self, factor: np.ndarray, y: np.ndarray) -> np.ndarray:
        """float64 G⁻¹ y for the factor() of G."""
        x, n = np.array(y, np.float64), len(factor)
        for i in range(0, n, BLOCK):
            rows = slice(i, min(i + BLOCK, n))
            x[rows] = np.linalg.solve(np.tril(factor[rows, rows]), x[rows] - factor[rows, :i] @ x[:i])
        for i in reversed(range(0, n, BLOCK)):
            rows, end = slice(i, min(i + BLOCK, n)), min(i + BLOCK, n)
            x[rows] = np.linalg.solve(np.tril(factor[rows, rows]).T, x[rows] - factor[end:, rows].T @ x[end:])
        return x

    def orthonormal(self, x: np.ndarray) -> np.ndarray:
        """A basis of x's columns: Q of QR."""
        return np.linalg.qr(x)[0]

    def eigh(self, g: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(eigenvalues as float64 NumPy, eigenvectors in columns) of a symmetric float64 matrix, the largest first."""
        values, vectors = np.linalg.eigh(g)
        return values[::-1], vectors[:, ::-1]

    def inverse_transposed(self, factor: np.ndarray, u: np.ndarray) -> np.ndarray:
        """L⁻ᵀ u for a lower factor L."""
        return np.linalg.solve(np.tril(factor).T, u)

    def lower(self, factor: np.ndarray) -> np.ndarray:
        return np.tril(factor)


def _corner(g: np.ndarray) -> np.ndarray | None:
    """Cholesky's factor of a tile, of which only the lower half counts. None: it is not positive."""
    try:
        corner = np.linalg.cholesky(np.tril(g) + np.tril(g, -1).T)
    except np.linalg.LinAlgError:
        return None
    return corner if np.isfinite(corner).all() else None


def _restore(g: np.ndarray, diagonal: np.ndarray) -> None:
    """The lower half of a symmetric matrix from its upper one."""
    for i in range(0, len(g), BLOCK):
        g[i + BLOCK :, i : i + BLOCK] = g[i : i + BLOCK, i + BLOCK :].T
        tile = g[i : i + BLOCK, i : i + BLOCK]
        tile[...] = np.triu(tile, 1) + np.triu(tile, 1).T
    g.reshape(-1)[:: len(g) + 1] = diagonal
