"""Where predictions do not add up: one factor a type, from models whose matrices are all of one type.

Costs to second order add up as long as errors are small and independent. They are not quite: some formats shrink all
weights alike, and large divergences grow faster or slower than their parts. A uniform model's measured KL says by how
much, for the types that are in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from anytune.gguf import TensorInfo
from anytune.quantization import mix
from anytune.quantization.search.curvature import Costs

PULL = 0.02  # of every factor towards 1, against the squares of relative misses
RANGE = (0.2, 5.0)


@dataclass(frozen=True)
class Uniform:
    """All matrices in one type, or in its substitute if rows are too short.

    price: of the budget. sums: type -> the predicted KL of the tensors in it. kl, error: measured on the whole model,
    and its standard error, in nats a token; None: not measured.
    """

    kind: str
    formats: Mapping[str, str]
    price: int
    sums: Mapping[str, float]
    kl: float | None = None
    error: float | None = None

    def measured(self, values: np.ndarray) -> Uniform:
        """With the KL of every token."""
        return replace(self, kl=float(values.mean()), error=float(values.std() / np.sqrt(max(1, len(values) - 1))))


def uniform(
    kind: str, tensors: Mapping[str, TensorInfo], costs: Costs, prices: Mapping[str, Mapping[str, int]]
) -> Uniform | None:
    """The uniform model of a type; None where a tensor cannot become it."""
    formats = {name: mix.fitting(kind, tensors[name].shape[-1]) for name in costs}
    if any(block not in prices[name] or not np.isfinite(costs[name][block]) for name, block in formats.items()):
        return None
    return Uniform(kind, formats, sum(prices[name][block] for name, block in formats.items()), sums(formats, costs))


def sums(formats: Mapping[str, str], costs: Costs) -> dict[str, float]:
    """Type -> the predicted KL of the tensors that have it."""
    found: dict[str, float] = {}
    for name, block in formats.items():
        if name in costs:
            found[block] = found.get(block, 0.0) + costs[name][block]
    return found


def factors(models: Sequence[Uniform]) -> dict[str, float]:
    """Type -> the factor of its costs, by least squares of relative misses over the measured models."""
    kinds = sorted({kind for model in models for kind, cost in model.sums.items() if cost > 0})
    rows = [[model.sums.get(kind, 0.0) / model.kl for kind in kinds] for model in models if model.kl]
    if not rows or not kinds:
        return {}
    a = np.array(rows)
    found = np.linalg.solve(a.T @ a + PULL * np.eye(len(kinds)), a.sum(axis=0) + PULL)
    return dict(zip(kinds, found.clip(*RANGE).tolist(), strict=True))


def predicted(parts: Mapping[str, float], by: Mapping[str, float]) -> float:
    """KL in nats of a mix whose sums are `parts`, with factors."""
    return sum(by.get(kind, 1.0) * cost for kind, cost in parts.items())
