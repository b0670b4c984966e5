"""Experts of a Hugging Face folder, which has a matrix for each or gate and up in one, as GGUF has them: stacked."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from anytune.convert.checkpoint import Weight
from anytune.errors import UserError

EACH = re.compile(r"(.+\.experts)\.(\d{1,5})\.(\w+)\.(weight|bias)")
BOTH = re.compile(r"(.+\.experts)\.gate_up_proj(_bias)?")
NAMES = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}  # Mixtral's, and what others call them


@dataclass(frozen=True)
class Stack:
    """One expert's weight after the other: [experts, …]. Read as Weight is."""

    parts: tuple[Weight, ...]

    @property
    def file(self):
        return self.parts[0].file

    @property
    def dtype(self) -> str:
        return self.parts[0].dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self.parts), *self.parts[0].shape

    def rows(self, low: int, high: int) -> np.ndarray:
        """Experts low…high: float32 [high - low, …]."""
        return np.stack([part.rows(0, part.shape[0]) for part in self.parts[low:high]])

    def pieces(self, weights: int):
        step = max(1, weights // max(1, math.prod(self.shape[1:])))
        return ((low, min(low + step, self.shape[0])) for low in range(0, self.shape[0], step))


@dataclass(frozen=True)
class Half(Stack):
    """Gate or up of a tensor that holds both, [experts, 2 x hidden, …], one below the other."""

    upper: bool = True

    @property
    def shape(self) -> tuple[int, ...]:
        experts, both, *rest = self.parts[0].shape
        return experts, both // 2, *rest

    def rows(self, low: int, high: int) -> np.ndarray:
        hidden = self.shape[1]
        found = self.parts[0].rows(low, high)
        return found[:, :hidden] if self.upper else found[:, hidden:]


def stacked(weights: dict[str, Weight]) -> dict[str, Weight | Stack]:
    """The weights with each layer's experts in one: NAME.experts.gate_proj.weight and so on. Raises UserError for
    experts of which some are missing, or that differ in shape or type."""
    found: dict[str, Weight | Stack] = {}
    experts: dict[str, dict[int, Weight]] = defaultdict(dict)
    for name, weight in weights.items():
        if each := EACH.fullmatch(name):
            place, number, part, kind = each.groups()
            experts[f"{place}.{NAMES.get(part, part)}.{kind}"][int(number)] = weight
        elif (both := BOTH.fullmatch(name)) and len(weight.shape) == 3 - bool(both[2]) and weight.shape[1] % 2 == 0:
            kind = "bias" if both[2] else "weight"
            found[f"{both[1]}.gate_proj.{kind}"] = Half((weight,), True)
            found[f"{both[1]}.up_proj.{kind}"] = Half((weight,), False)
        else:
            found[f"{name}.weight" if name.endswith(".experts.down_proj") else name] = weight
    for name, parts in experts.items():
        if sorted(parts) != list(range(len(parts))):
            raise UserError(f"Of {name[:100]} the folder has {len(parts)} experts, and not the first of them all.")
        if len({(part.shape, part.dtype) for part in parts.values()}) > 1:
            raise UserError(f"The experts of {name[:100]} differ in shape or type.")
        found[name] = Stack(tuple(parts[number] for number in range(len(parts))))
    return found
