"""A matrix that is trained: float32 values that change between steps, used where a frozen Weight is."""

from __future__ import annotations

import torch

Tensor = torch.Tensor


class Trained:
    """values, gradient: float32 [out, in], or [experts, out, in], on the engine's device, both contiguous; without a
    gradient it is a matrix that stays. See weights.Weight for the methods.

    Nothing made of the values is kept: they stay at one address, so that a recorded step reads what they are by then.
    """

    hold, slow, home, type, nbytes = "trained", False, None, None, 0  # type, nbytes: of the file that it is read from

    def __init__(self, values: Tensor, gradient: Tensor | None):
        self.values, self.gradient = values, gradient
        self.expert_features, self.in_features = values.shape[-2:]
        self.out_features = values.numel() // self.in_features

    def expert(self, number: int) -> Trained:
        return Trained(self.values[number], None if self.gradient is None else self.gradient[number])

    def matrices(self, out: Tensor) -> None:
        """All experts' into out [experts, out, in]."""
        out.copy_(self.values)

    def change_hold(self, how: str) -> None:
        """It cannot be held in another way."""

    def rows(self, low: int, high: int, out: Tensor) -> None:
        out.copy_(self.values[low:high])

    def piece(self, low: int, high: int, tile: Tensor) -> Tensor:
        if tile.dtype == self.values.dtype:
            return self.values[low:high]
        self.rows(low, high, tile[: high - low])
        return tile[: high - low]

    def gather(self, ids: Tensor, out: Tensor, scale: float) -> None:
        torch.mul(self.values.index_select(0, ids), scale, out=out)
