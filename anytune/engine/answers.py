"""Known answers: what one says, and how an operation of an engine is compared with float64.

Backwards are checked along one direction by central differences of the float64 forward, so the check is exact without a
second derivation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Answer:
    """One operation's largest relative error, and the most that the engine's number format explains."""

    operation: str
    error: float
    tolerance: float = 1e-4  # of float32 on sums this short; a wrong kernel is off by far more

    @property
    def ok(self) -> bool:
        return bool(self.error <= self.tolerance)  # a NaN is not


def error(got, want) -> float:
    """Largest difference over the largest magnitude wanted."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    if got.shape != want.shape:
        return float("inf")
    return float(np.max(np.abs(got - want), initial=0.0) / (np.max(np.abs(want), initial=0.0) + 1e-30))


def slope(function, x, direction, delta=1e-5):
    """d/dt of function(x + t*direction) at 0, float64."""
    return (function(x + delta * direction) - function(x - delta * direction)) / (2 * delta)


class Checks:
    """What the checks of one engine share; each check yields Answers."""

    def __init__(self, engine, random: int | np.random.Generator = 0):
        self.e, self.random = engine, np.random.default_rng(random)
        self.tokens, self.starts = 37, np.array([0, 5, 6, 37], np.int32)

    def draw(self, *shape: int) -> np.ndarray:
        return self.random.standard_normal(shape).astype(np.float32)

    def up(self, values: np.ndarray):
        """A host array on the engine, laid out as the engine lays out its own."""
        rows = self.e.integers(np.arange(len(values)))
        return self.e.gather(self.e.vector(values), rows) if values.ndim == 2 else self.e.vector(values)

    def backward(self, name: str, dx, function, x, dy) -> Answer:
        """Does dx·v equal the slope of sum(function(x)*dy) along v?"""
        dx = self.e.host(dx).astype(np.float64)
        v = self.direction(dx)
        want = slope(lambda z: np.sum(function(z) * dy), x.astype(np.float64), v)
        return Answer(name, abs(np.sum(dx * v) - want) / (np.linalg.norm(dx) * np.linalg.norm(v) + 1e-30))

    def direction(self, dx: np.ndarray) -> np.ndarray:
        """Half random, and half dx itself, so that a wrong size shows as much as a wrong place."""
        v = self.random.standard_normal(dx.shape)
        return v + dx * (np.linalg.norm(v) / (np.linalg.norm(dx) + 1e-30))
