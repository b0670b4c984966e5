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
WHOLE = re.compile(r"(.+\.experts)\.(gate_up|gate|up|down)_proj(_bias)?")
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
    """Gate or up (which) of a tensor that holds both, [experts, 2 x hidden, …], one below the other; or, turned, gate
    and up by turns in the last axis, and all matrices the other way round, as gpt-oss has them."""

    which: str = "all"
    turned: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        experts, *rest = self.parts[0].shape
        rest = rest[::-1] if self.turned else rest
        return experts, rest[0] // (1 if self.which == "all" else 2), *rest[1:]

    def rows(self, low: int, high: int) -> np.ndarray:
        found = self.parts[0].rows(low, high)
        if self.turned:
            found = np.swapaxes(found, 1, -1)
        hidden = self.shape[1]
        gates = slice(0, None, 2) if self.turned else slice(hidden)
        ups = slice(1, None, 2) if self.turned else slice(hidden, None)
        return found[:, {"all": slice(None), "gate": gates, "up": ups}[self.which]]


def stacked(weights: dict[str, Weight], fused: bool = False) -> dict[str, Weight | Stack]:
    """The weights with each layer's experts in one: NAME.mlp.experts.gate_proj.weight and so on; fused: gate and up
    stay one where they are. Raises UserError for experts of which some are missing, or that differ in shape or type."""
    weights = {name.replace(".block_sparse_moe.", ".mlp."): weight for name, weight in weights.items()}
    turned = any(name.endswith(".experts.gate_up_proj_bias") for name in weights)
    found: dict[str, Weight | Stack] = {}
    experts: dict[str, dict[int, Weight]] = defaultdict(dict)
    for name, weight in weights.items():
        if each := EACH.fullmatch(name):
            place, number, part, kind = each.groups()
            experts[f"{place}.{NAMES.get(part, part)}.{kind}"][int(number)] = weight
        elif whole := WHOLE.fullmatch(name):
            place, part, bias = whole.groups()
            kind = "bias" if bias else "weight"
            if len(weight.shape) != (2 if bias else 3) or part == "gate_up" and weight.shape[-1 if turned else 1] % 2:
                raise UserError(f"{name[:100]} has the shape {weight.shape}: these are no experts of a known form.")
            halves = ("gate", "up") if part == "gate_up" and not fused else ()
            for one in halves or (part,):
                which = one if halves else "all"
                found[f"{place}.{one}_proj.{kind}"] = Half((weight,), which, turned)
        else:
            found[name] = weight
    for name, parts in experts.items():
        if sorted(parts) != list(range(len(parts))):
            raise UserError(f"Of {name[:100]} the folder has {len(parts)} experts, and not the first of them all.")
        if len({(part.shape, part.dtype) for part in parts.values()}) > 1:
            raise UserError(f"The experts of {name[:100]} differ in shape or type.")
        found[name] = Stack(tuple(parts[number] for number in range(len(parts))))
    return found
