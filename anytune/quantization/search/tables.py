"""The two ends of the model: what rounding costs in the matrix of the logits, and in the table of embeddings."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from anytune.quantization.rewrite import rows_of
from anytune.quantization.search.rounding import Rounding


def head(rounding: Rounding, name: str, hidden: np.ndarray, sums: np.ndarray, cap: float = 0.0) -> dict[str, float]:
    """Type -> KL in nats a token, to second order: half the variance of the logits' errors under the distributions.

    hidden: what the matrix sees, float32 [T, d]; sums: the logits' lse [T]; cap: logits z are cap * tanh(z / cap); 0:
    they are as they are.
    """

    def prepare(lo: int, exact: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        p, slope = hidden @ exact.T, np.float32(1)
        if cap:
            p = np.float32(cap) * np.tanh(p / np.float32(cap))
            slope = 1 - np.square(p / np.float32(cap))
        p -= sums[:, None].astype(np.float32)
        np.exp(p, out=p)

        def one(difference: np.ndarray) -> np.ndarray:
            error = slope * (hidden @ difference.T)
            return np.stack(
                [
                    np.einsum("ij,ij->i", p, error, dtype=np.float64),
                    np.einsum("ij,ij,ij->i", p, error, error, dtype=np.float64),
                ]
            )

        return one

    return {
        kind: float(np.mean(total[1] - total[0] ** 2)) / 2 if np.ndim(total) else float(total)
        for kind, total in rounding.sums(name, prepare).items()
    }


def lookup(
    rounding: Rounding, name: str, pieces: Sequence[Sequence[int]], gradients: Sequence[np.ndarray], scale: float
) -> dict[str, float]:
    """Type -> KL in nats a token of the table's rows where the windows look them up.

    gradients: for each draw that by the embeddings [T, d]; scale: of the embeddings. A token's errors add up within a
    window, those of different tokens are independent.
    """
    ids = np.concatenate([np.asarray(piece) for piece in pieces])
    windows = np.repeat(np.arange(len(pieces)), len(pieces[0]))
    used, places = np.unique(ids, return_inverse=True)
    runs = np.unique(windows * len(used) + places, return_inverse=True)[1]
    exact = np.concatenate([rows_of(rounding.file, name, int(row), int(row) + 1) for row in used])

    def cost(kind: str) -> float:
        try:
            error = np.float32(scale) * rounding.difference(name, exact, kind)[places]
        except ValueError:
            return float("inf")
        found = sum(float(np.square(np.bincount(runs, np.einsum("ij,ij->i", dx, error))).sum()) for dx in gradients)
        return found / (2 * len(gradients) * len(ids))

    return dict(zip(rounding.types[name], rounding.pool.map(cost, rounding.types[name]), strict=True))
