"""From logits to the next token: the samplers and defaults that llama.cpp's users know."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from anytune.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen. Applied in llama.cpp's order: penalty, top-k, top-p, min-p, temperature.

    temperature     0 or below: the most likely token, always
    top_k           keep the k most likely tokens (0: all)
    top_p           keep the fewest tokens whose probabilities reach p (1: all)
    min_p           drop tokens less likely than this part of the most likely one's probability (0: none)
    repeat_penalty  divide the positive logits of recent tokens by it, multiply the negative ones (1: off)
    repeat_last_n   how many tokens count as recent (-1: all)
    seed            None or negative: a fresh one each time

    Raises UserError, naming the value, for one that means nothing.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, good, wanted in (
            ("temperature", np.isfinite(self.temperature), "a finite number"),
            ("top_k", self.top_k >= 0, "0 or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "between 0 and 1"),
            ("repeat_penalty", 0 < self.repeat_penalty < 100, "above 0 (1 is off)"),
            ("repeat_last_n", self.repeat_last_n >= -1, "-1 or more"),
        ):
            if not good:
                raise UserError(f"{name.replace('_', '-')} must be {wanted}, not {getattr(self, name)!r}.")

    def generator(self, stream: int = 0) -> np.random.Generator:
        """Random numbers of one sequence: each slot of a batch has its own, so a batch changes nothing."""
        if self.seed is None or self.seed < 0:
            return np.random.default_rng()
        return np.random.default_rng([self.seed, stream])


def sample(logits: np.ndarray, recent: list[int], how: Sampling, random: np.random.Generator) -> int:
    """Choose one token. logits: float32 [vocab] (not changed); recent: the tokens so far. Returns its id.

    Raises UserError where the logits are not numbers, which a damaged file or adapter causes.
    """
    best = int(np.argmax(logits))  # argmax finds a NaN first, if there is one
    if not np.isfinite(logits[best]):
        raise UserError("The model's logits are not numbers: the model or adapter file is damaged, or the "
                        "adapter belongs to another model.")
    if how.repeat_penalty != 1.0 and how.repeat_last_n and recent:
        last = recent if how.repeat_last_n < 0 else recent[-how.repeat_last_n:]
        ids = np.unique(np.asarray(last, np.int64))
        logits = logits.copy()
        chosen = logits[ids]
        logits[ids] = np.where(chosen > 0, chosen / how.repeat_penalty, chosen * how.repeat_penalty)
        best = int(np.argmax(logits))
    if how.temperature <= 0:
        return best
    ids, p = _candidates(logits, how)
    p = np.exp((np.log(p) - np.log(p[0])) / how.temperature)
    edges = np.cumsum(p)
    return int(ids[min(np.searchsorted(edges, random.random() * edges[-1], side="right"), len(ids) - 1)])


def _candidates(logits: np.ndarray, how: Sampling) -> tuple[np.ndarray, np.ndarray]:
    """(ids, probabilities float64, most likely first) of the tokens that top-k, top-p and min-p leave."""
    if 0 < how.top_k < logits.size:
        ids = np.argpartition(logits, -how.top_k)[-how.top_k:]
    else:
        ids = np.arange(logits.size)
    ids = ids[np.argsort(-logits[ids], kind="stable")]
    p = np.exp(logits[ids].astype(np.float64) - float(logits[ids[0]]))
    p /= p.sum()
    keep = p > 0
    if how.top_p < 1:
        keep &= np.cumsum(p) - p < how.top_p
    if how.min_p > 0:
        keep &= p >= how.min_p * p[0]
    keep[0] = True
    return ids[keep], p[keep]
