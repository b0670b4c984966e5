"""The matrix that makes keys and values of latents, as GGUF has it: one tensor for each, heads apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from anytune.convert.checkpoint import Weight
from anytune.convert.experts import Stack
from anytune.errors import UserError

BOTH = ".kv_b_proj.weight"


@dataclass(frozen=True)
class OfHeads(Stack):
    """What makes each head's values, [heads, value, rank], or its keys, the other way round: [heads, rank, plain]."""

    heads: int = 1
    plain: int = 0
    keys: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        rows, rank = self.parts[0].shape
        return (self.heads, rank, self.plain) if self.keys else (self.heads, rows // self.heads - self.plain, rank)

    def rows(self, low: int, high: int) -> np.ndarray:
        each = self.parts[0].shape[0] // self.heads
        both = self.parts[0].rows(low * each, high * each).reshape(high - low, each, -1)
        return both[:, : self.plain].swapaxes(1, 2) if self.keys else both[:, self.plain :]


def split_latents(weights: Mapping[str, Weight | Stack], config: Mapping[str, Any]) -> dict[str, Weight | Stack]:
    """The weights with NAME.k_b_proj and NAME.v_b_proj in place of each NAME.kv_b_proj. Raises UserError for one that
    does not fit config.json."""
    found: dict[str, Weight | Stack] = {}
    heads, plain, values = (config.get(key) for key in ("num_attention_heads", "qk_nope_head_dim", "v_head_dim"))
    for name, weight in weights.items():
        if not name.endswith(BOTH):
            found[name] = weight
            continue
        sizes = all(isinstance(size, int) and size > 0 for size in (heads, plain, values))
        if not sizes or len(weight.shape) != 2 or weight.shape[0] != heads * (plain + values):
            raise UserError(f"{name[:100]} has the shape {weight.shape}, which does not fit config.json's heads.")
        for part in ("k", "v"):
            found[name.replace(".kv_b_", f".{part}_b_")] = OfHeads((weight,), heads, plain, part == "k")
    return found
