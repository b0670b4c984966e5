"""A matrix that is trained: float32 values on the device that change between steps."""

from __future__ import annotations

from .arrays import Array
from .weights import Rows, Weight


class Trained(Weight):
    """values, gradient: float32 [out, in] or [experts, out, in], each contiguous in its own buffer."""

    hold, block, known, loaded = "blocks", "F32", True, True

    def __init__(self, engine, values: Array, gradient: Array):
        self.engine, self.values, self.gradient = engine, values, gradient
        self.out_features, self.expert_features, self.in_features = values.rows, values.shape[-2], values.columns
        self.row_bytes = 4 * self.in_features

    def change_hold(self, how: str) -> None:
        """It cannot be held in another way."""

    def rows(self) -> list[Rows]:
        return [Rows(0, self.out_features, self.values.buffer, 4 * self.values.at)]
