"""The next token of one sequence: OpenAI's penalties and biases, what a grammar allows, and the log-probabilities."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from anytune.generation.sampling import Sampling, sample

if TYPE_CHECKING:
    from anytune.serve.grammar import Matcher


@dataclass(frozen=True)
class Choice:
    """How a token is chosen. penalties, as OpenAI defines them, count the tokens of the answer: a logit falls by
    presence once, and by frequency for each time that its token came. bias is added to logits."""

    sampling: Sampling = Sampling()
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    bias: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Chosen:
    """A token, its natural log-probability before anything was changed, and the likeliest `top` of them."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


def choose(
    logits: np.ndarray,
    prompt: list[int],
    answer: list[int],
    how: Choice,
    random: np.random.Generator,
    matcher: Matcher | None = None,
    top: int | None = None,
) -> Chosen:
    """logits: float32 [vocab], may be changed. top: how many log-probabilities are asked for; None: none at all."""
    raw = logits.copy() if top is not None else None
    if how.bias:
        logits[list(how.bias)] += np.fromiter(how.bias.values(), np.float32)
    if (how.frequency_penalty or how.presence_penalty) and answer:
        counts = Counter(answer)
        times = np.fromiter(counts.values(), np.float32)
        logits[list(counts)] -= how.frequency_penalty * times + how.presence_penalty
    if matcher is not None:
        matcher.restrict(logits)
    token = (
        sample(logits, prompt + answer, how.sampling, random)
        if how.sampling.repeat_penalty != 1
        else sample(logits, [], how.sampling, random)
    )
    if raw is None:
        return Chosen(token)
    logs = log_softmax(raw)
    best = np.argpartition(logs, -top)[-top:] if top else np.zeros(0, int)
    listed = sorted(((int(i), float(logs[i])) for i in best), key=lambda pair: (-pair[1], pair[0]))
    return Chosen(token, float(logs[token]), tuple(listed))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """float32 [vocab]."""
    shifted = logits - logits.max()
    return shifted - np.float32(np.log(np.exp(shifted).sum(dtype=np.float64)))
