"""The gated product with a norm before the product that writes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from anytune.model.part import Norm, norm_backward

from .gated import Gated

if TYPE_CHECKING:
    from anytune.model.build import LayerWeights
    from anytune.model.config import Config


@dataclass
class SubNormedGated(Gated):
    """sub: the norm."""

    sub: Norm | None = None

    @classmethod
    def tensors(cls, c: Config, layer: int) -> dict[str, tuple[int, ...]]:
        return {**super().tensors(c, layer), "ffn_sub_norm.weight": (c.hidden,)}

    @classmethod
    def of(cls, w: LayerWeights, c: Config) -> SubNormedGated:
        made = super().of(w, c)
        made.sub = w.norm("ffn_sub_norm")
        return made

    @property
    def trains_reads(self) -> bool:
        return super().trains_reads or self.sub.trains

    def write(self, e, gate, up) -> tuple:
        return e.linear(e.rms_norm(e.glu(gate, up, self.activation), self.sub.gain, self.eps), self.writes)

    def write_backward(self, e, dy, gate, up, needed: bool):
        product = e.glu(gate, up, self.activation)
        da = e.linear_backward((dy,), e.rms_norm(product, self.sub.gain, self.eps), self.writes, needed)
        if not needed:
            return None
        return e.glu_backward(norm_backward(e, da, product, self.sub, self.eps), gate, up, self.activation)
