"""Fitting a training run into memory: what is held, kept and made again, decided before anything is allocated.

The engine itself is run dry, on shapes. What can be given up for memory is the engine's to say (its budget's
ways: how weights are held, how large temporary pieces are); what every engine can give up is the activations of some
layers, whose forward then runs twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable
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


def plan_training(model, spec, ubatch: int, context: int, memory: int | None) -> Estimate:
    """The fastest way to train `spec` (see spec.py) that fits `memory` bytes (None: what is free).

    Raises UserError if none does.
    """
    counter = _Counter(model, spec, ubatch, context)
    prove(model.engine, bool(spec.names))
    budget = counter.budget = model.engine.budget(model.weights, memory)
    layers = counter.trained
    best: tuple[float, Way, int] | None = None
    ways = sorted(budget.ways, key=lambda way: way.cost)  # cheapest first: most runs count two or three times only
    first = counter.first = ways[0]
    hopeless: list[Way] = []
    for way in ways:
        if best is not None and way.cost >= best[0]:
            break
        if way in hopeless:
            continue
        # the first way gives up nothing: what runs twice costs no less in another
        wanted = 0 if best is None else _least(lambda k: way.cost + AGAIN * counter.twice(first, k) < best[0], layers)
        keep = _most(lambda k: counter.fits(way, k), wanted, layers, way is first)
        if keep is not None:
            cost = way.cost + AGAIN * counter.twice(way, keep)
            if best is None or cost < best[0]:
                best = cost, way, keep
        elif best is None:
            later, kin = ways[ways.index(way) + 1 :], (way.hold, way.family)
            others = [other for other in later if (other.hold, other.family) == kin]
            hopeless += others[: _least(lambda i: counter.fits(others[i], 0), len(others))]
    if best is None:
        raise UserError(
            f"training needs at least {-(-counter.least(ways) // MIB)} MiB of {budget.place} but only "
            f"{budget.limit // MIB} MiB are allowed: {spec.advice}"
        )
    return _estimate(counter, *best[1:])


def _estimate(counter: _Counter, way: Way, keep: int) -> Estimate:
    (size, flops), layers = counter.run(way, keep), counter.trained
    kept = (
        "activations of all layers are kept"
        if keep == layers
        else f"{layers - keep} of {layers} layers run their forward twice"
    )
    held = way.text if counter.frozen else "all weights are trained, in float32"
    peak = counter.budget.base + size
    return Estimate(way.hold, keep, way.sizes, peak, flops / counter.ubatch, f"{held}; {kept}")


def _most(fits: Callable[[int], bool], least: int, most: int, likely: bool) -> int | None:
    """The largest number in least…most that fits (fits is monotone), or None. likely: `most` is, so it comes first."""
    if likely and fits(most):
        return most
    if not fits(least):
        return None
    low, high = least, most + (not likely)  # fits(low), not fits(high)
    while high - low > 1:
        middle = (low + high + 1) // 2  # upwards: the lowest are the ones that are not known from others
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _least(enough: Callable[[int], bool], most: int) -> int:
    """The smallest number in 0…most that is enough (enough is monotone, and `most` is)."""
    low, high = -1, most  # not enough(low), enough(high)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


class _Counter:
    """One micro-batch of training, counted for given choices."""

    def __init__(self, model, spec, ubatch: int, context: int):
        self.model, self.spec, self.ubatch, self.context = model, spec, ubatch, min(context, ubatch)
        layers = model.config.layers
        self.lowest = spec.lowest(layers)
        self.trained = layers - self.lowest
        self.budget: Any = None
        self._known: dict = {}
        self._runs: dict[str, DryRun] = {}

    @property
    def frozen(self) -> bool:
        """Whether weights of the model stay as they are."""
        config = self.model.config
        return any(not config.looked_up(n) and n not in self.spec.names for n in self.model.weights.matrices)

    def run(self, way: Way, keep: int) -> tuple[int, float]:
        """(bytes beyond what is taken now, FLOPs of a micro-batch)."""
        if (way, keep) not in self._known:
            self._known[way, keep] = self._dry(way).measure(way.sizes, keep)
        return self._known[way, keep]

    def _dry(self, way: Way) -> DryRun:
        if way.hold not in self._runs:
            engine = self.budget.dry(way, self.ubatch)
            self._runs[way.hold] = DryRun(
                self.model, self.spec, engine, way.hold, self.lowest, self.ubatch, self.context
            )
        return self._runs[way.hold]

    def fits(self, way: Way, keep: int) -> bool:
        allowed = self.budget.limit - self.budget.base
        return self._dry(way).least(way.sizes, keep) <= allowed and self.run(way, keep)[0] <= allowed

    def least(self, ways: list[Way]) -> int:
        """Bytes of what is taken now and of a run of whichever way takes the least, with every forward run twice."""
        found = math.inf
        for way in reversed(ways):  # the dearest first, as they take little
            if self._dry(way).least(way.sizes, 0) < found:
                found = min(found, self.run(way, 0)[0])
        return self.budget.base + found

    def twice(self, way: Way, keep: int) -> float:
        """The arithmetic of forwards that run again, over that of a step without them, which is the same any way."""
        return 0.0 if keep == self.trained else self.run(way, keep)[1] / self.run(self.first, self.trained)[1] - 1
