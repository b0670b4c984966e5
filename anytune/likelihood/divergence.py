"""How far other models' distributions are from one model's on the same windows; no distribution is kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from anytune.likelihood.windows import Forward, logsumexp

if TYPE_CHECKING:
    from anytune.model import Model


class Reference:
    """A model on windows of one length: what its head sees is kept, its logits are made again for each comparison.

    batch: tokens run at once.
    """

    def __init__(self, model: Model, pieces: Sequence[Sequence[int]], batch: int = 2048):
        step = max(1, batch // len(pieces[0]))
        self.batches = [pieces[lo : lo + step] for lo in range(0, len(pieces), step)]
        self._forward = Forward(model, len(pieces[0]))
        self._hidden = [model.engine.host(self._forward.hidden(some)) for some in self.batches]

    def kl(self, other: Model) -> np.ndarray:
        """KL(this, other) in nats at every token of every window: float64 [tokens]. Both have one vocabulary."""
        forward, found = Forward(other, len(self.batches[0][0])), []
        for some, hidden in zip(self.batches, self._hidden, strict=True):
            theirs = forward.hidden(some)
            rows = np.arange(len(hidden))
            ours = self._forward.engine.vector(hidden)
            for (_, p), (_, q) in zip(self._forward.logits(ours, rows), forward.logits(theirs, rows), strict=True):
                found.append(between(p, q))
        return np.concatenate(found)


def between(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """KL of the distributions with logits p and q, float32 [n, vocabulary] -> float64 [n]. Both are written over."""
    p -= logsumexp(p)[:, None].astype(np.float32)
    q -= logsumexp(q)[:, None].astype(np.float32)
    np.subtract(p, q, out=q)
    np.exp(p, out=p)
    return np.einsum("ij,ij->i", p, q, dtype=np.float64)
