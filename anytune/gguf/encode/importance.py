"""What an error of each weight costs: the `w` that the searches weigh squares with.

Measured importance (the mean square of each column's input, see anytune imatrix) is multiplied with the root of a
mean square and the weight's own, since large weights carry more of a row's product than their count says. Without
measured importance the weights' magnitudes are used instead.

In this file: x is float32 [rows, weights].
"""

from __future__ import annotations

import numpy as np

# format -> (without importance, how much of the root mean square of its 32 weights joins each weight's size;
# with it, how many mean squares join the weight's own under the root, None: importance alone)
RULES: dict[str, tuple[float, float | None]] = {
    "Q4_0": (0.25, 1.0),
    "Q4_1": (0.25, 1.0),
    "Q5_0": (0.25, 1.0),
    "Q5_1": (0.25, 1.0),
    "IQ4_NL": (0.25, 2.0),
    "IQ4_XS": (0.25, 2.0),
    "Q2_K": (0.25, 1.0),
    "Q3_K": (0.25, 2.0),
    "Q4_K": (3.0, 2.0),
    "Q5_K": (3.0, 2.0),
    "Q6_K": (0.25, None),
}


def weigh(x: np.ndarray, name: str, block: int, importance: np.ndarray | None) -> np.ndarray:
    """float32 [rows, weights]. importance: float32 [weights], of each column; block: the format's block size."""
    share, mean_squares = RULES[name]
    if importance is None:
        return np.abs(x) + np.float32(share) * _spread(np.sqrt(_means(x * x, 32)), x.shape)
    if mean_squares is None:
        return np.broadcast_to(importance, x.shape)
    square = x * x
    square += np.float32(mean_squares) * _spread(_means(square, block if block > 32 else x.shape[1]), x.shape)
    np.sqrt(square, out=square)
    square *= importance
    return square


def _means(values: np.ndarray, group: int) -> np.ndarray:
    """[rows, groups, 1]: means over runs of `group`."""
    return values.reshape(len(values), -1, group).mean(axis=2, keepdims=True)


def _spread(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return np.repeat(values[:, :, 0], shape[1] // values.shape[1], axis=1)
