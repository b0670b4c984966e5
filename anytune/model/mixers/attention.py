"""Causal attention with grouped heads: norms of heads, windows, rope, and a sigmoid gate where a model has them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from anytune.engine.base import Heads
from anytune.model.part import Norm, Part, norm_backward

if TYPE_CHECKING:
    from anytune.model.build import LayerWeights
    from anytune.model.config import Config


@dataclass
class Attention(Part):
    """heads: its shape; rope: (cos, sin) of its angles; neox: how these pair a head's elements; gated: each query
    head comes with a gate of its width, whose sigmoid the head's result is multiplied with; wide: the norms are
    over all heads together; heat [context, 1]: of the queries of each position, or None; sinks: a score of each
    query head that has no value, or None."""

    q_norm: Norm | None
    k_norm: Norm | None
    heads: Heads
    rope: Any
    neox: bool
    gated: bool = False
    wide: bool = False
    heat: Any = None
    sinks: Any = None
    sinks_gradient: Any = None

    READS = ("attn_q", "attn_k", "attn_v")
    WRITES = ("attn_output",)

    @classmethod
    def shape(cls, c: Config, layer: int) -> Heads:
        keys = c.layer_kv_heads[layer] if c.layer_kv_heads else c.n_kv_heads
        window = c.window if c.windowed(layer) else 0
        return Heads(c.heads, keys, c.size(layer), window, c.attention_scale, c.score_cap, c.arch.sinks)

    @classmethod
    def tensors(cls, c: Config, layer: int) -> dict[str, tuple[int, ...]]:
        heads, arch = cls.shape(c, layer), c.arch
        q, kv, size = heads.n_heads * heads.head_dim, heads.n_kv_heads * heads.head_dim, heads.head_dim
        shapes = {
            "attn_q": (q * (2 if arch.gated_attention else 1), c.width),
            "attn_k": (kv, c.width),
            "attn_v": (kv, c.width),
            "attn_output": (c.width, q),
        }
        if arch.pre_norms:
            shapes["attn_norm"] = (c.width,)
        if arch.head_norms:
            shapes |= {"attn_q_norm": (size,), "attn_k_norm": (size,)}
        if arch.wide_norms:
            shapes |= {"attn_q_norm": (q,), "attn_k_norm": (kv,)}
        if arch.sinks:
            shapes["attn_sinks"] = (c.heads,)
        if arch.post_norms:
            shapes["post_attention_norm"] = (c.width,)
        return {f"{name}.weight": shape for name, shape in shapes.items()}

    @classmethod
    def of(cls, w: LayerWeights, c: Config) -> Attention:
        cos, sin, *heat = w.tables[c.rope(w.layer)]
        return cls(
            **cls.around(w, c, "attn_norm", "post_attention_norm"),
            q_norm=w.norm("attn_q_norm"),
            k_norm=w.norm("attn_k_norm"),
            heads=cls.shape(c, w.layer),
            rope=(cos, sin),
            neox=c.arch.neox,
            gated=c.arch.gated_attention,
            wide=c.arch.wide_norms,
            heat=heat[0] if heat else None,
            sinks=w.vector("attn_sinks.weight") if c.arch.sinks else None,
            sinks_gradient=w.gradient("attn_sinks.weight"),
        )

    @property
    def trains_reads(self) -> bool:
        return (
            super().trains_reads
            or self.sinks_gradient is not None
            or any(n is not None and n.trains for n in (self.q_norm, self.k_norm))
        )

    def _turn(self, positions) -> tuple:
        """What qk_norm_rope() and its backward take behind q and k."""
        gains = None if self.q_norm is None or self.wide else (self.q_norm.gain, self.k_norm.gain)
        return gains, self.eps, self.rope, positions, self.heads, self.neox

    def _turned(self, e, q, k, positions) -> tuple:
        """Queries and keys ready for attention. Without norms q and k are given up."""
        if self.wide:
            q, k = (e.rms_norm(z, norm.gain, self.eps) for z, norm in ((q, self.q_norm), (k, self.k_norm)))
        return e.qk_norm_rope(q, k, *self._turn(positions))

    def _turned_backward(self, e, dq, dk, q, k, positions) -> tuple:
        """(dq, dk) before _turned(), whose q and k matter with norms only."""
        into = (None, None) if self.q_norm is None or self.wide else (self.q_norm.gradient, self.k_norm.gradient)
        dq, dk = e.qk_norm_rope_backward(dq, dk, q, k, *self._turn(positions), into)
        if not self.wide:
            return dq, dk
        return norm_backward(e, dq, q, self.q_norm, self.eps), norm_backward(e, dk, k, self.k_norm, self.eps)

    def result(self, e, o, gate):
        """What the last product reads of the heads' results o and their gate, if they have one."""
        return o if gate is None else e.gated(o, gate, "sigmoid")

    def result_backward(self, e, dy, o, gate) -> tuple:
        """(do, dgate or None) of result()."""
        return (dy, None) if gate is None else e.gated_backward(dy, o, gate, "sigmoid")

    def forward(self, e, x, positions, attended=None):
        """x: [T, d] -> (x + attention(x), what the backward needs). attended: what attended() gave before, or None."""
        q, k, v = self.read(e, x)
        gate = None
        if self.gated:
            q, gate = e.split_heads(q, self.heads.n_heads)
        if self.heat is not None:
            q = e.scale(q, e.gather(self.heat, positions))
        # without head norms q and k are turned where they lie; with them they stay, for the backward
        turned_q, turned_k = self._turned(e, q, k, positions)
        if self.q_norm is None:
            q, k = turned_q, turned_k
        if self.sinks is None:
            o, lse = attended or e.attention(turned_q, turned_k, v, self.heads)
        else:
            o, lse = attended or e.attention_with(turned_q, turned_k, v, self.heads, self.sinks)
        turned = (turned_q, turned_k) if e.keeps_turned and self.q_norm is not None else None
        del turned_q, turned_k
        (y,) = e.linear(self.result(e, o, gate), self.writes)
        return self.add(e, x, y), (x, q, k, v, gate, turned, o, lse, self.kept(y))

    def attended(self, saved) -> tuple:
        """Of what forward() saved: that which makes a second forward skip the costly part."""
        return saved[6:8]

    def backward(self, e, dout, saved, positions, below, need_dx: bool):
        """dout: [T, d] -> dx [T, d], or None if it is not needed. Adds to the gradients.

        below: the group whose backward reads dx first, a hint.
        """
        x, q, k, v, gate, turned, o, lse, y = saved
        dy = self.add_backward(e, dout, y)
        del y
        needed = need_dx or self.trains_reads
        do = e.linear_backward((dy,), self.result(e, o, gate), self.writes, needed)
        del dy
        if not needed:
            return None
        do, dgate = self.result_backward(e, do, o, gate)
        if turned is None:
            turned = self._turned(e, q, k, positions) if self.q_norm is not None else (q, k)
        if self.sinks_gradient is not None:
            e.sink_gradient(do, o, lse, self.sinks, self.heads, self.sinks_gradient)
        dq, dk, dv = e.attention_backward(do, *turned, v, o, lse, self.heads)
        del do, o, v, turned, gate
        dq, dk = self._turned_backward(e, dq, dk, q, k, positions)
        del q, k
        if self.heat is not None:
            dq = e.scale(dq, e.gather(self.heat, positions))
        if dgate is not None:
            dq = e.join_heads(dq, dgate, self.heads.n_heads)
        return self.read_backward(e, (dq, dk, dv), x, dout, below, need_dx)

    def state(self, e, slots: int, context: int) -> tuple:
        """For decoding: caches of keys and values."""
        width = self.heads.n_kv_heads * self.heads.head_dim
        return e.cache(slots, context, width), e.cache(slots, context, width)
