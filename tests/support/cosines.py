"""How near two gradients of an adapter are, matrix by matrix."""

from __future__ import annotations

import numpy as np


def cosines(trainee, one: np.ndarray, two: np.ndarray) -> list[tuple[float, str]]:
    """(cosine, name) of each trained matrix. A NaN, which min() passes over, fails here."""
    assert np.isfinite(one).all() and np.isfinite(two).all()
    found = []
    for pair in trainee.layout.pairs:
        for view in (pair.view_a, pair.view_b):
            a, b = (view(z).astype(np.float64).ravel() for z in (one, two))
            found.append((float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b) + 1e-300)), pair.name))
    return found
