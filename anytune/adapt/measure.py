"""Distances between what teacher and student say, on examples that nothing was fitted to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from anytune.adapt.walk import Side
from anytune.likelihood.windows import log_sums

PIECE = 32 << 20  # bytes of logits at a time


@dataclass(frozen=True)
class Distance:
    """kl: mean KL(teacher || student) in nats a token; top: how often the likeliest token is the same; nll: the mean
    negative log-likelihood that the student gives the data's own tokens; tokens: how many were scored."""

    kl: float
    top: float
    nll: float
    tokens: int


def log_probabilities(side: Side, walker: Any, step: int) -> Iterator[np.ndarray]:
    """float32 [at most step, vocabulary] of a batch's scored rows, in order."""
    e, head, hidden = side.engine, side.head(), side.hidden(walker)
    count = len(walker.batch.scored)
    for low in range(0, count, step):
        rows = e.gather(hidden, e.integers(np.arange(low, min(low + step, count), dtype=np.int32)))
        logits = np.asarray(e.host(e.logits(rows, head)), np.float32)
        yield logits - log_sums(logits)[:, None].astype(np.float32)


def distances(teacher: Side, students: Sequence[Side]) -> list[Distance]:
    """How far each student is from the teacher, all of them run through() their layers, over the scored rows."""
    step = max(1, PIECE // (4 * teacher.model.config.vocabulary))
    sums = np.zeros((len(students), 3))
    count = 0
    for number, walker in enumerate(teacher.walkers):
        at = 0
        others = [log_probabilities(student, student.walkers[number], step) for student in students]
        for wanted in log_probabilities(teacher, walker, step):
            targets = walker.batch.targets[at : at + len(wanted)]
            chances = np.exp(wanted)
            best = wanted.argmax(1)
            for row, found in zip(sums, others):
                own = next(found)
                terms = np.where(chances > 0, chances * (wanted - own), 0)
                row += (
                    terms.sum(dtype=np.float64),
                    (best == own.argmax(1)).sum(),
                    -own[np.arange(len(own)), targets].sum(dtype=np.float64),
                )
            at += len(wanted)
        count += at
    count = max(count, 1)
    return [
        Distance(max(0.0, float(kl) / count), float(top) / count, float(nll) / count, count) for kl, top, nll in sums
    ]
