"""Latent attention (DeepSeek-V2, arXiv:2405.04434): keys and values of all heads are made of one narrow latent.

Training makes them, and is plain attention from there. Decoding keeps the latents: queries go through the matrix that
makes the keys, what attention gives goes through the one that makes the values, so that all heads share one key, the
latent behind the columns that turn, and its latent is the value.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from anytune.engine.base import Heads, LatentHeads
from anytune.model.part import Norm, Part

if TYPE_CHECKING:
    from anytune.model.build import LayerWeights
    from anytune.model.config import Config

SPLIT = "attn_k_b.weight", "attn_v_b.weight"  # the one matrix attn_kv_b, as newer files have it


@dataclass
class LatentAttention(Part):
    """queries: the group that makes them of their own latent, behind q_norm, or None; spread: makes keys and values of
    theirs, behind kv_norm, by `matrix`, which is not trained; shape, heads: of what it makes, and of the attention."""

    q_norm: Norm | None
    kv_norm: Norm
    queries: Any
    spread: Any
    matrix: Any
    shape: LatentHeads
    heads: Heads
    rope: Any
    neox: bool

    READS = ("attn_q_a", "attn_kv_a_mqa")
    WRITES = ("attn_output",)
    NEEDS = "latent"

    @classmethod
    def tensors(cls, c: Config, layer: int) -> dict[str, tuple[int, ...]]:
        s = c.latent
        shapes = {
            "attn_norm": (c.width,),
            "attn_kv_a_mqa": (s.rank + s.rope, c.width),
            "attn_kv_a_norm": (s.rank,),
            "attn_output": (c.width, s.heads * s.value),
        }
        if c.q_rank:
            shapes |= {"attn_q_a": (c.q_rank, c.width), "attn_q_a_norm": (c.q_rank,)}
        shapes["attn_q_b" if c.q_rank else "attn_q"] = (s.heads * s.keys, c.q_rank or c.width)
        if c.split_latent:
            shapes |= {"attn_k_b": (s.heads, s.rank, s.nope), "attn_v_b": (s.heads, s.value, s.rank)}
        else:
            shapes["attn_kv_b"] = (s.heads * (s.nope + s.value), s.rank)
        return {f"{name}.weight": shape for name, shape in shapes.items()}

    @classmethod
    def of(cls, w: LayerWeights, c: Config) -> LatentAttention:
        s = c.latent
        return cls(
            **cls.around(w, c, "attn_norm"),
            q_norm=w.norm("attn_q_a_norm"),
            kv_norm=w.norm("attn_kv_a_norm"),
            queries=w.group(8, "attn_q_b") if c.q_rank else None,
            spread=w.group(9, "attn_kv_b"),
            matrix=w.matrix("attn_kv_b"),
            shape=s,
            heads=Heads(s.heads, s.heads, s.size, 0, c.attention_scale),
            rope=w.tables[c.rope(w.layer)],
            neox=c.arch.neox,
        )

    @classmethod
    def linears(cls, c: Config) -> tuple[tuple[str, ...], ...]:
        return (cls.WRITES,)

    @property
    def products(self) -> tuple:
        """The last one: with the others llama.cpp looks for no adapter."""
        return ((self.writes, self.WRITES),)

    @property
    def named(self) -> tuple:
        """The matrix that makes keys and values has no name: in most files it is two."""
        queries = ((self.queries, ("attn_q_b",)),) if self.queries is not None else ()
        return (self.reads, self.READS), *queries, (self.spread, ()), *self.products

    @property
    def trains_reads(self) -> bool:
        inner = (self.queries, self.spread, self.q_norm, self.kv_norm)
        return super().trains_reads or any(x is not None and x.trains for x in inner)

    def _turn(self, positions) -> tuple:
        return None, self.eps, self.rope, positions, self.heads, self.neox

    def result(self, e, o):
        """What the last product reads of attention's result."""
        s = self.shape
        return o if s.value == s.size else e.resize_heads(o, s.heads, s.value)

    def forward(self, e, x, positions, attended=None):
        """As in attention.py."""
        s = self.shape
        asked, low = self.read(e, x)
        latent, shared = e.split(low, s.rank, s.rope)
        q = asked if self.queries is None else e.norm_linear(asked, self.q_norm.gain, self.eps, self.queries)[0]
        if hasattr(e, "attend_latent"):  # tokens that continue sequences; see decoder.py
            (y,) = e.linear(self._continue(e, q, latent, shared, positions), self.writes)
            return self.add(e, x, y), None
        (kv,) = e.norm_linear(latent, self.kv_norm.gain, self.eps, self.spread)
        q, k, v = e.latent_heads(q, kv, shared, s)
        q, k = e.qk_norm_rope(q, k, *self._turn(positions))
        del kv, shared, low
        o, lse = attended or e.attention(q, k, v, self.heads)
        (y,) = e.linear(self.result(e, o), self.writes)
        return self.add(e, x, y), (x, asked, latent, q, k, v, o, lse)

    def _continue(self, e, q, latent, shared, positions):
        """The last product's input for new tokens, against latents that are kept."""
        s = self.shape
        nope, rope = e.split_heads(q, s.heads, s.nope)
        absorbed = e.head_product(nope, self.matrix, s.heads, 0, s.nope, True)
        key = e.join((shared, e.rms_norm(latent, self.kv_norm.gain, self.eps)))
        heads = replace(self.heads, n_kv_heads=1, head_dim=s.rope + s.rank)
        turn = *self._turn(positions)[:4], heads, self.neox
        o = e.attend_latent(e.join_heads(rope, absorbed, s.heads), key, turn, heads)
        _, mixed = e.split_heads(o, s.heads, s.rope)
        return e.head_product(mixed, self.matrix, s.heads, s.nope, s.nope + s.value, False)

    def attended(self, saved) -> tuple:
        """As in attention.py."""
        return saved[6:8]

    def backward(self, e, dout, saved, positions, below, need_dx: bool):
        """As in attention.py."""
        x, asked, latent, q, k, v, o, lse = saved
        s, needed = self.shape, need_dx or self.trains_reads
        do = e.linear_backward((dout,), self.result(e, o), self.writes, needed)
        if not needed:
            return None
        if s.value != s.size:
            do = e.resize_heads(do, s.heads, s.size)
        dq, dk, dv = e.attention_backward(do, q, k, v, o, lse, self.heads)
        del do, o, v
        dq, dk = e.qk_norm_rope_backward(dq, dk, q, k, *self._turn(positions))
        del q, k
        dq, dkv, dshared = e.latent_heads_backward(dq, dk, dv, s)
        del dk, dv
        how = self.kv_norm.gain, self.eps, self.spread, None, True, None, self.kv_norm.gradient
        dlatent = e.norm_linear_backward((dkv,), latent, *how)
        del dkv
        if self.queries is not None:
            how = self.q_norm.gain, self.eps, self.queries, None, True, None, self.q_norm.gradient
            dq = e.norm_linear_backward((dq,), asked, *how)
        return self.read_backward(e, (dq, e.join((dlatent, dshared))), x, dout, below, need_dx)

    def state(self, e, slots: int, context: int) -> tuple:
        """For decoding: a cache of latents behind the columns that turn."""
        return (e.cache(slots, context, self.shape.rope + self.shape.rank),)


class PlainQueries(LatentAttention):
    """Queries are made of the residual stream."""

    READS = ("attn_q", "attn_kv_a_mqa")
