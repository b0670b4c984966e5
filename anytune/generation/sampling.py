"""From logits to the next token: the samplers and defaults that llama.cpp's users know."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from anytune.arguments import fields
from anytune.errors import UserError, check_numbers


SYNONYMS = {"temp": "temperature", "repetition_penalty": "repeat_penalty", "random_state": "seed"}


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
                flag = "temp" if name == "temperature" else name.replace("_", "-")
                raise UserError(f"{name} (--{flag}) must be {wanted}, not {getattr(self, name)!r}.")

    def generator(self, stream: int = 0) -> np.random.Generator:
        """Random numbers of one sequence: each slot of a batch has its own, so a batch changes nothing."""
        if self.seed is None or self.seed < 0:
            return np.random.default_rng()
        return np.random.default_rng([self.seed, stream])


fields(Sampling, SYNONYMS)

LISTED = 256  # tokens, up to which a list of the likeliest is worth while


def reach(how: Sampling) -> int | None:
    """How many of the likeliest tokens a choice can fall on, before penalties; None: any.

    A penalty of 1 or more only lowers logits, of repeat_last_n tokens at most: so many more may come up.
    """
    most = 1 if how.temperature <= 0 else how.top_k
    if how.repeat_penalty < 1 or (how.repeat_penalty > 1 and how.repeat_last_n < 0):
        return None
    if how.repeat_penalty > 1:
        most += how.repeat_last_n if most else 0
    return most if 0 < most <= LISTED else None


def sample(logits: np.ndarray, recent: list[int], how: Sampling, random: np.random.Generator) -> int:
    """Choose one token. logits: float32 [vocab] (not changed); recent: the tokens so far. Returns its id.

    Raises UserError where the logits are not numbers, which a damaged file or adapter causes.
    """
    best = int(np.argmax(logits))  # of a NaN first, if there is one
    check_numbers(logits[best : best + 1])
    if how.repeat_penalty != 1.0:
        logits = _penalized(np.arange(logits.size), logits, recent, how)
        best = int(np.argmax(logits))
    if how.temperature <= 0:
        return best
    if 0 < how.top_k < logits.size:
        ids = np.argpartition(logits, -how.top_k)[-how.top_k :]
    else:
        ids = np.arange(logits.size)
    return _draw(ids, logits[ids], how, random)


def sample_listed(
    ids: np.ndarray, logits: np.ndarray, recent: list[int], how: Sampling, random: np.random.Generator
) -> int:
    """As sample(), from a list of the likeliest tokens (largest logit first), as many as reach() says or all."""
    check_numbers(logits[:1])
    logits = _penalized(ids, logits, recent, how)
    if how.temperature <= 0:
        return int(ids[np.argmax(logits)])
    best = np.argsort(-logits, kind="stable")[: how.top_k or None]
    return _draw(ids[best], logits[best], how, random)


def _penalized(ids: np.ndarray, logits: np.ndarray, recent: list[int], how: Sampling) -> np.ndarray:
    """The logits of `ids` after the penalty for recent tokens."""
    if how.repeat_penalty == 1.0 or not how.repeat_last_n or not recent:
        return logits
    last = recent if how.repeat_last_n < 0 else recent[-how.repeat_last_n :]
    lower = np.where(logits > 0, logits / how.repeat_penalty, logits * how.repeat_penalty)
    return np.where(np.isin(ids, last), lower, logits).astype(np.float32)


def _draw(ids: np.ndarray, logits: np.ndarray, how: Sampling, random: np.random.Generator) -> int:
    """One of the tokens that top-k left, of those that top-p and min-p leave, at the temperature."""
    order = np.argsort(-logits, kind="stable")
    ids, logits = ids[order], logits[order]
    p = np.exp(logits.astype(np.float64) - float(logits[0]))
    p /= p.sum()
    keep = p > 0
    if how.top_p < 1:
        keep &= np.cumsum(p) - p < how.top_p
    if how.min_p > 0:
        keep &= p >= how.min_p * p[0]
    keep[0] = True
    ids, p = ids[keep], p[keep]
    p = np.exp((np.log(p) - np.log(p[0])) / how.temperature)
    edges = np.cumsum(p)
    return int(ids[min(np.searchsorted(edges, random.random() * edges[-1], side="right"), len(ids) - 1)])
