"""Fitting a training run into memory: what is held, kept and made again, decided before anything is allocated.

The engine itself is run dry, on shapes. What can be given up for memory is the engine's to say (its budget's
ways: how weights are held, how large temporary pieces are); what every engine can give up is the activations of some
layers, whose forward then runs twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from anytune.engine.budget import Way
from anytune.engine.check import prove
from anytune.errors import UserError
from anytune.memory import MIB

from .dry_run import DryRun

AGAIN = 0.8  # what arithmetic that is done twice adds to a step, in parts of what it adds to the step's arithmetic


@dataclass(frozen=True)
class Estimate:
    """hold: how weights are held; keep: layers (from the last) that keep all activations; sizes: of pieces.

    peak_bytes: of the memory that the engine's budget counts; flops_per_token: of training; text: one line for a
    person.
    """

    hold: str
    keep: int
    sizes: Any
    peak_bytes: int
    flops_per_token: float
    text: str


def plan_training(model, subject, ubatch: int, context: int, memory: int | None) -> Estimate:
    """The fastest way to train `subject` (see subject.py) that fits `memory` bytes (None: what is free).

    Raises UserError if none does.
    """
    counter = _Counter(model, subject, ubatch, context)
    prove(model.engine, bool(subject.names))
    budget = counter.budget = model.engine.budget(model.weights, memory)
    layers = counter.trained
    best: tuple[float, Estimate] | None = None
    least = None
    ways = sorted(budget.ways, key=lambda way: way.cost)  # cheapest first: most runs count two or three times only
    first = ways[0]
    for way in ways:
        if best is not None and way.cost >= best[0]:
            break
        # the first way gives up nothing: what runs twice costs no less in another
        wanted = 0 if best is None else _least(lambda k: way.cost + AGAIN * counter.twice(first, k) < best[0], layers)
        keep = _most(lambda k: budget.base + counter.run(way, k)[0] <= budget.limit, wanted, layers, way is first)
        if keep is None:
            if best is None:
                need = budget.base + counter.run(way, 0)[0]
                least = need if least is None else min(least, need)
            continue
        cost = way.cost + AGAIN * counter.twice(first, keep)
        if best is not None and cost >= best[0]:
            continue
        size, flops = counter.run(way, keep)
        kept = (
            "activations of all layers are kept"
            if keep == layers
            else f"{layers - keep} of {layers} layers run their forward twice"
        )
        held = way.text if counter.frozen else "all weights are trained, in float32"
        best = (cost, Estimate(way.hold, keep, way.sizes, budget.base + size, flops / ubatch, f"{held}; {kept}"))
    if best is None:
        raise UserError(
            f"training needs at least {-(-least // MIB)} MiB of {budget.place} but only {budget.limit // MIB} MiB "
            f"are allowed: {subject.advice}"
        )
    return best[1]


def _most(fits, least: int, most: int, likely: bool) -> int | None:
    """The largest number in least…most that fits (fits is monotone), or None. likely: `most` is, so it comes first."""
    if likely and fits(most):
        return most
    if not fits(least):
        return None
    low, high = least, most + (not likely)  # fits(low), not fits(high)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _least(enough, most: int) -> int:
    """The smallest number in 0…most that is enough (enough is monotone, and `most` is)."""
    return next((k for k in range(most) if enough(k)), most)


class _Counter:
    """One micro-batch of training, counted for given choices."""

    def __init__(self, model, subject, ubatch: int, context: int):
        self.model, self.subject, self.ubatch, self.context = model, subject, ubatch, min(context, ubatch)
        layers = model.config.layers
        self.lowest = subject.lowest(layers)
        self.trained = layers - self.lowest
        self.budget: Any = None
        self._known: dict = {}
        self._runs: dict[str, DryRun] = {}

    @property
    def frozen(self) -> bool:
        """Whether weights of the model stay as they are."""
        config = self.model.config
        return any(not config.looked_up(n) and n not in self.subject.names for n in self.model.weights.matrices)

    def run(self, way: Way, keep: int) -> tuple[int, float]:
        """(bytes beyond what is taken now, FLOPs of a micro-batch)."""
        if (way, keep) not in self._known:
            self._known[way, keep] = self._dry(way).measure(way.sizes, keep)
        return self._known[way, keep]

    def _dry(self, way: Way) -> DryRun:
        if way.hold not in self._runs:
            engine = self.budget.dry(way, self.ubatch)
            self._runs[way.hold] = DryRun(
                self.model, self.subject, engine, way.hold, self.lowest, self.ubatch, self.context
            )
        return self._runs[way.hold]

    def twice(self, way: Way, keep: int) -> float:
        """The arithmetic of forwards that run again, over that of a step without them."""
        return 0.0 if keep == self.trained else self.run(way, keep)[1] / self.run(way, self.trained)[1] - 1
