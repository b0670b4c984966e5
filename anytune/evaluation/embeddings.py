"""Embeddings by the model itself: the mean of what its last norm gives for each token, as llama.cpp's mean pooling.

Cosines of such embeddings lie close together (two texts without any relation often have 0.8), so compare() also gives
the cosine of answers with other prompts' references.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from anytune.errors import check_numbers
from anytune.likelihood.windows import Forward

if TYPE_CHECKING:
    from anytune.model import Model

LONGEST = 2048  # tokens that see each other; a longer text is the mean over its parts
BATCH = 2048  # tokens run at once


def embed(model: Model, texts: Sequence[str], progress: Callable[[int, int], None] | None = None) -> np.ndarray:
    """float32 [texts, width], each row of length 1, or 0 for a text without tokens. progress: (texts done, of all)."""
    longest = min(LONGEST, model.config.context)
    parts = [
        (number, ids[lo : lo + longest])
        for number, text in enumerate(texts)
        for ids in [model.tokenize(text)]
        for lo in range(0, len(ids), longest)
    ]
    sums = np.zeros((len(texts), model.config.width), np.float32)
    forward = Forward(model, max((len(ids) for _, ids in parts), default=1))
    while parts:
        held = count = 0
        while count < len(parts) and (not count or held + len(parts[count][1]) <= BATCH):
            held += len(parts[count][1])
            count += 1
        some, parts = parts[:count], parts[count:]
        hidden = model.engine.host(forward.hidden([ids for _, ids in some]))
        starts = np.cumsum([0, *(len(ids) for _, ids in some)])
        for (number, _), lo, hi in zip(some, starts, starts[1:]):
            sums[number] += hidden[lo:hi].sum(axis=0)
        if progress is not None:
            progress(some[-1][0] + 1, len(texts))
    check_numbers(sums, "hidden states")
    return sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-30)


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """float64 [n]: row by row, of rows of length 1."""
    return np.einsum("nd,nd->n", a.astype(np.float64), b.astype(np.float64))


def unrelated(a: np.ndarray, b: np.ndarray) -> float | None:
    """The mean cosine of rows with other rows' partners, None if there is one row alone."""
    if len(a) < 2:
        return None
    return float((a.sum(0, np.float64) @ b.sum(0, np.float64) - cosines(a, b).sum()) / (len(a) * (len(a) - 1)))
