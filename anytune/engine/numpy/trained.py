"""A matrix that is trained: float32 values that change between steps, used where a frozen Weight is."""

from __future__ import annotations

import numpy as np


class Trained:
    """values, gradient: float32 [out, in], or [experts, out, in], both contiguous; without a gradient it is a matrix
    that stays. See weights.Weight and ExpertWeights for the methods."""

    hold, block, slow, nbytes = "float32", 1, False, 0  # nbytes: of a file that it is read from

    def __init__(self, values: np.ndarray, gradient: np.ndarray | None):
        self.values, self.gradient = values, gradient
        self.expert_features, self.in_features = values.shape[-2:]
        self.out_features = values.size // self.in_features

    def expert(self, number: int) -> Trained:
        return Trained(self.values[number], None if self.gradient is None else self.gradient[number])

    @property
    def shape(self) -> tuple[int, int]:
        return self.values.shape

    def load(self) -> None:
        """It is there."""

    def change_hold(self, hold: str) -> None:
        """It cannot be held in another way."""

    def forget(self) -> None:
        """It stays."""

    def dense(self) -> np.ndarray:
        return self.values

    def needs_raw(self) -> bool:
        return False

    def rows(self, low: int, high: int, out: np.ndarray, raw) -> None:
        out[:, : self.in_features] = self.values[low:high]

    def columns(self, low: int, high: int, out: np.ndarray, raw) -> None:
        out[:, : high - low] = self.values[:, low:high]

    def read_rows(self, low: int, high: int, raw: np.ndarray) -> None:
        """Nothing is read."""

    def gather(self, rows: np.ndarray, out: np.ndarray) -> None:
        np.take(self.values, rows, axis=0, out=out[:, : self.in_features], mode="raise")
