"""Attention whose queries, keys and values are one matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .attention import Attention

if TYPE_CHECKING:
    from anytune.model.config import Config


class FusedAttention(Attention):
    """attn_qkv has the rows of the queries, of the keys and of the values, in this order."""

    READS = ("attn_qkv",)

    @classmethod
    def tensors(cls, c: Config, layer: int) -> dict[str, tuple[int, ...]]:
        shapes = super().tensors(c, layer)
        rows = sum(shapes.pop(f"{name}.weight")[0] for name in Attention.READS)
        return {**shapes, "attn_qkv.weight": (rows, c.width)}

    def read(self, e, x) -> tuple:
        width, narrow = (n * self.heads.head_dim for n in (self.heads.n_heads, self.heads.n_kv_heads))
        return e.split(*super().read(e, x), width, narrow, narrow)

    def read_backward(self, e, dys: tuple, x, dout, below, need_dx: bool):
        return super().read_backward(e, (e.join(dys),), x, dout, below, need_dx)
