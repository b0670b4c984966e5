"""The gated product whose gate and up are one matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .gated import Gated

if TYPE_CHECKING:
    from anytune.model.config import Config


class FusedGated(Gated):
    """ffn_up has the rows of the gate, then those of up."""

    READS = ("ffn_up",)

    @classmethod
    def tensors(cls, c: Config, layer: int) -> dict[str, tuple[int, ...]]:
        shapes = super().tensors(c, layer)
        del shapes["ffn_gate.weight"]
        return {**shapes, "ffn_up.weight": (2 * shapes["ffn_up.weight"][0], c.width)}

    @property
    def between(self) -> None:
        return None

    def read(self, e, x) -> tuple:
        (both,) = super().read(e, x)
        return e.split(both, both.shape[1] // 2, both.shape[1] // 2)

    def read_backward(self, e, dys: tuple, x, dout, below, need_dx: bool):
        return super().read_backward(e, (e.join(dys),), x, dout, below, need_dx)
