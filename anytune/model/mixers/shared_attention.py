"""Attention whose keys and values later layers may read: a norm without gain on the values, which may be the keys.

A layer that reads another's has queries only. Keys and values wait in the run for it, and so do their gradients for the
layer that made them; nothing else of a layer is kept for another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from anytune.model.part import Run

from .attention import Attention

if TYPE_CHECKING:
    from anytune.model.build import LayerWeights
    from anytune.model.config import Config


@dataclass
class SharedAttention(Attention):
    """layer: its number; run: where keys and values wait, if later layers read them (read_later); ones: a gain."""

    layer: int = 0
    run: Run | None = None
    read_later: bool = False
    ones: Any = None

    @classmethod
    def tensors(cls, c: Config, layer: int) -> dict[str, tuple[int, ...]]:
        shapes = super().tensors(c, layer)
        gone = {f"{name}.weight" for name in Attention.READS if name not in cls.READS}
        if "attn_k" not in cls.READS:
            gone.add("attn_k_norm.weight")
        return {name: shape for name, shape in shapes.items() if name not in gone}

    @classmethod
    def of(cls, w: LayerWeights, c: Config) -> SharedAttention:
        made = super().of(w, c)
        made.layer, made.run = w.layer, w.run
        made.read_later = any(c.source(i) == w.layer for i in range(c.layers - c.shared, c.layers))
        made.ones = w.weights.engine.vector(np.ones(made.heads.head_dim, np.float32))
        return made

    def _normed(self, positions) -> tuple:
        """What head_norm() and its backward take behind the values."""
        return self.ones, self.eps, self.heads.n_kv_heads, self.run.still, positions

    def forward(self, e, x, positions, attended=None):
        """x: [T, d] -> (x + attention(x), what the backward needs). attended: as in attention.py."""
        q, k, *rest = self.read(e, x)
        raw = rest[0] if rest else k
        v = e.head_norm(raw, *self._normed(positions))
        turned_q, turned_k = self._turned(e, q, k, positions)
        o, lse = attended or e.attention(turned_q, turned_k, v, self.heads)
        if self.read_later:
            self.run.kept[self.layer] = turned_k, v
        del turned_q, turned_k, v
        (y,) = e.linear(o, self.writes)
        return self.add(e, x, y), (x, q, k, raw, o, lse, self.kept(y))

    def attended(self, saved) -> tuple:
        return saved[4:6]

    def backward(self, e, dout, saved, positions, below, need_dx: bool):
        """As in attention.py."""
        x, q, k, raw, o, lse, y = saved
        self.run.kept.pop(self.layer, None)
        dy = self.add_backward(e, dout, y)
        needed = need_dx or self.trains_reads
        do = e.linear_backward((dy,), o, self.writes, needed)
        del dy, y
        if not needed:
            return None
        v = e.head_norm(raw, *self._normed(positions))
        dq, dk, dv = e.attention_backward(do, *self._turned(e, q, k, positions), v, o, lse, self.heads)
        del do, o, v
        owed = self.run.owed.pop(self.layer, None)
        if owed is not None:
            dk, dv = plus(e, owed[0], dk), plus(e, owed[1], dv)
        dq, dk = self._turned_backward(e, dq, dk, q, k, positions)
        dv = e.head_norm_backward(dv, raw, *self._normed(positions))
        dys = (dq, dk, dv) if len(self.READS) == 3 else (dq, plus(e, dv, dk))
        return self.read_backward(e, dys, x, dout, below, need_dx)


class KeysAsValues(SharedAttention):
    """The values are the keys before their norm."""

    READS = ("attn_q", "attn_k")


@dataclass
class BorrowedAttention(SharedAttention):
    """source: the layer whose keys and values it reads."""

    source: int = 0

    READS = ("attn_q",)

    @classmethod
    def of(cls, w: LayerWeights, c: Config) -> BorrowedAttention:
        made = super().of(w, c)
        made.source = c.source(w.layer)
        return made

    @property
    def trains_reads(self) -> bool:
        return super(Attention, self).trains_reads or self.q_norm.trains

    def _turn(self, positions) -> tuple:
        return (self.q_norm.gain, self.q_norm.gain), self.eps, self.rope, positions, self.heads, self.neox

    def forward(self, e, x, positions, attended=None):
        """As in attention.py."""
        (q,) = self.read(e, x)
        k, v = self.run.kept[self.source]
        if attended is not None:
            o, lse = attended
        elif hasattr(e, "attend_again"):  # tokens that continue sequences; see decoder.py
            o, lse = e.attend_again(q, k, self._turn(positions), self.heads, self.source)
        else:
            o, lse = e.attention(self._turned(e, q, k, positions)[0], k, v, self.heads)
        (y,) = e.linear(o, self.writes)
        return self.add(e, x, y), (x, q, o, lse, self.kept(y))

    def attended(self, saved) -> tuple:
        return saved[2:4]

    def backward(self, e, dout, saved, positions, below, need_dx: bool):
        """As in attention.py."""
        x, q, o, lse, y = saved
        k, v = self.run.kept[self.source]
        dy = self.add_backward(e, dout, y)
        needed = need_dx or self.trains_reads
        do = e.linear_backward((dy,), o, self.writes, needed)
        del dy, y
        if not needed:
            return None
        dq, *others = e.attention_backward(do, self._turned(e, q, k, positions)[0], k, v, o, lse, self.heads)
        del do, o
        before = self.run.owed.get(self.source)
        self.run.owed[self.source] = tuple(
            e.scale(d, 1.0) if before is None else plus(e, before[i], d) for i, d in enumerate(others)
        )
        del others
        into = self.q_norm.gradient, None
        dq, _ = e.qk_norm_rope_backward(dq, e.scale(k, 0.0), q, k, *self._turn(positions), into)
        return self.read_backward(e, (dq,), x, dout, below, need_dx)

    def state(self, e, slots: int, context: int) -> tuple:
        return ()


def plus(e, x, y):
    """x + y, which is given up, at once: add() may wait for what reads it."""
    return e.scale(e.add(x, y), 1.0)
