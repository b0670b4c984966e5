"""What an engine makes of weights: models read these attributes, and only hand the rest back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from .shapes import Array


class Weight(Protocol):
    """A matrix, of an engine's weight() or trained()."""

    out_features: int
    in_features: int
    nbytes: int  # of its blocks
    gradient: Array | None  # None: frozen
    slow: bool  # its blocks are read without a compiled kernel, so that dequantizing them once would pay

    def change_hold(self, hold: str) -> None:
        """Hold it in another way from now on (see Engine.weight)."""


class Pair(Protocol):
    """A low-rank pair, of lora_pair()."""

    a: Array
    b: Array


class Group(Protocol):
    """Linears that share an input, of group() or expert_group()."""

    weights: Sequence[Weight]
    pairs: Sequence[Pair | None]
    in_features: int
    rank: int  # columns that their low-rank products take, 0 if none has a pair
    trains: bool  # a backward adds to some gradient
    cap: float  # of a head, set by the model: cross_entropy() and logits() take cap * tanh(y / cap); 0: y itself
