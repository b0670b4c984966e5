"""What of a group of linears is trained."""

from __future__ import annotations

from typing import Any


class Trains:
    """Reads a group's weights, low-rank pairs (or None each) and bias_gradients (or None each)."""

    weights: tuple[Any, ...]
    pairs: tuple[Any, ...]
    bias_gradients: tuple[Any, ...]

    @property
    def trains_pairs(self) -> bool:
        return any(pair is not None and pair.grad_a is not None for pair in self.pairs)

    @property
    def trains_matrix(self) -> bool:
        return any(weight.gradient is not None for weight in self.weights)

    @property
    def trains_bias(self) -> bool:
        return any(gradient is not None for gradient in self.bias_gradients)

    @property
    def trains(self) -> bool:
        return self.trains_pairs or self.trains_matrix or self.trains_bias
