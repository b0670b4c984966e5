"""Attention with a norm of all heads' results together, before the product that writes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from anytune.model.part import Norm, norm_backward

from .attention import Attention

if TYPE_CHECKING:
    from anytune.model.build import LayerWeights
    from anytune.model.config import Config


@dataclass
class SubNormedAttention(Attention):
    """sub: the norm."""

    sub: Norm | None = None

    @classmethod
    def tensors(cls, c: Config, layer: int) -> dict[str, tuple[int, ...]]:
        return {**super().tensors(c, layer), "attn_sub_norm.weight": (c.heads * c.head_size,)}

    @classmethod
    def of(cls, w: LayerWeights, c: Config) -> SubNormedAttention:
        made = super().of(w, c)
        made.sub = w.norm("attn_sub_norm")
        return made

    @property
    def trains_reads(self) -> bool:
        return super().trains_reads or self.sub.trains

    def result(self, e, o, gate):
        return e.rms_norm(super().result(e, o, gate), self.sub.gain, self.eps)

    def result_backward(self, e, dy, o, gate) -> tuple:
        return super().result_backward(e, norm_backward(e, dy, super().result(e, o, gate), self.sub, self.eps), o, gate)
