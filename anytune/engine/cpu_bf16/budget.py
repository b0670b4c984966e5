"""The bf16 CPU engine's ways to train within memory: the NumPy engine's, counted with bf16 rows."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from anytune.engine.budget import Way
from anytune.engine.numpy.budget import NumpyBudget

from .sizes import Bf16Sizes

if TYPE_CHECKING:
    from .dry import Dry

HALF, UNPACKED = 0.03, 0.06  # of a step: dequantizing and packing for each use, of dx alone, and of y as well


class Bf16Budget(NumpyBudget):
    """See anytune.engine.budget."""

    def __init__(self, engine, weights, memory: int | None):
        super().__init__(engine, weights, memory)
        self.ways = [
            Way(0.0, "blocks", Bf16Sizes(packed="both"), "weights are kept as bf16, packed for the products"),
            Way(HALF, "blocks", Bf16Sizes(packed="y"), "weights are kept as bf16, packed for the forward's products"),
            *(replace(way, cost=way.cost + UNPACKED) for way in self.ways),
        ]

    def dry(self, way: Way, capacity: int) -> Dry:
        from .dry import dry

        return dry(self.engine, way.sizes, capacity)
