"""The bf16 CPU engine's ways to train within memory: the NumPy engine's, counted with bf16 rows."""

from __future__ import annotations

from anytune.engine.budget import Way
from anytune.engine.numpy.budget import NumpyBudget

from .count import Bf16Count


class Bf16Budget(NumpyBudget):
    """See anytune.engine.budget."""

    def counter(self, way: Way, capacity: int) -> Bf16Count:
        return Bf16Count(self.engine.workers.count, way.sizes, capacity, way.hold)
