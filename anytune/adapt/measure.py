"""Distances between what teacher and student say, on examples that nothing was fitted to."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from anytune.adapt.batching import batches
from anytune.adapt.data import Example, text_examples
from anytune.adapt.job import DRIFTED, GUARDED, WINDOW, Settings, Task, Teacher, ordinary_text
from anytune.adapt.walk import Side
from anytune.adapter.adapter import Adapter
from anytune.likelihood.windows import logsumexp

if TYPE_CHECKING:
    from anytune.model import Model

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
        yield logits - logsumexp(logits)[:, None].astype(np.float32)


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


@dataclass(frozen=True)
class Measured:
    """before: the bare student; after: with the adapter; plain: {name: with a plain alternative}; on examples held out.
    drift, drift_plain: KL from the bare student on ordinary text; teacher_drift: the teacher's own there."""

    before: Distance
    after: Distance
    plain: dict[str, Distance]
    drift: float
    teacher_drift: float
    drift_plain: dict[str, float] = field(default_factory=dict)

    @property
    def recovered(self) -> float:
        return 1.0 - self.after.kl / self.before.kl if self.before.kl > 0 else 0.0


def measure(model: Model, task: Task, made: Adapter, plain: Mapping[str, Adapter], settings: Settings) -> Measured:
    """Distances of the student to the task's teacher, bare, with the adapter, and with plain alternatives."""
    adapters: dict[str, Adapter | None] = {"before": None, "after": made, **plain}
    found = beside(model, task.teacher, adapters, task.held, settings, "held-out examples")
    text = settings.drift_text
    windows = text_examples(model, ordinary_text() if text is None else text, WINDOW, task.teacher.context)
    windows = windows[GUARDED:][:DRIFTED] or windows[-1:] if text is None else windows[:DRIFTED]
    moved = _drift(model, task.teacher, adapters, windows, settings)
    return Measured(
        found["before"],
        found["after"],
        {name: found[name] for name in plain},
        moved["after"],
        moved["teacher"],
        {name: moved[name] for name in plain},
    )


def beside(
    model: Model,
    teacher: Teacher,
    adapters: Mapping[str, Adapter | None],
    examples: Sequence[Example],
    settings: Settings,
    what: str,
) -> dict[str, Distance]:
    share = teacher.shares
    one, front = batches(examples, settings.batch, False, share)
    other, behind = batches(examples, settings.batch, True, share)
    sides = [
        Side(teacher.model, other, behind, adapter=teacher.adapter),
        *(Side(model, one, front, adapter=adapter) for adapter in adapters.values()),
    ]
    return dict(zip(adapters, _compared(sides, settings, what)))


def _drift(
    model: Model,
    teacher: Teacher,
    adapters: Mapping[str, Adapter | None],
    windows: Sequence[Example],
    settings: Settings,
) -> dict[str, float]:
    """KL from the bare student on ordinary text: of the student with each adapter, and of the teacher."""
    bare = [dataclasses.replace(e, behind=e.ids, own=len(e.ids)) for e in windows] if not teacher.context else windows
    share = teacher.shares
    one, front = batches(bare, settings.batch, False, share)
    other, behind = batches(bare, settings.batch, True, share)
    names = [name for name in adapters if name != "before"]
    sides = [
        Side(model, one, front),
        Side(teacher.model, other, behind, adapter=teacher.adapter),
        *(Side(model, one, front, adapter=adapters[name]) for name in names),
    ]
    return {name: d.kl for name, d in zip(["teacher", *names], _compared(sides, settings, "ordinary text"))}


def _compared(sides: list[Side], settings: Settings, what: str) -> list[Distance]:
    layers, total = 0, sum(side.model.config.layers for side in sides)
    for side in sides:

        def tell(_: int) -> None:
            nonlocal layers
            layers += 1
            settings.tell(what, layers, total, "")

        side.through(tell)
    return distances(sides[0], sides[1:])
