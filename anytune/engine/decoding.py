"""The operations of generation: a few new tokens against caches."""

from __future__ import annotations

from typing import Protocol

from .shapes import Array, Heads


class Decoding(Protocol):
    """Every engine has them."""

    # -- generation. A span: (slot, first row, last row, position of the first) of a sequence's new tokens
    def decode(self, body, ids, spans, rows):
        """body(ids, positions, places, rows or None) -> logits, as float32 NumPy [len(rows), vocab] (None without
        rows). ids: new tokens of all spans, end to end; rows: those whose logits are wanted. As replay(): it may be
        recorded."""

    def decode_best(self, body, ids, spans, rows, most: int):
        """decode() -> (ids int64, logits float32) [len(rows), most] of the largest logits, largest first; what is no
        number counts as larger than any. Where the device chooses, no row of logits crosses to the host."""

    def places(self, spans):
        """Spans in the engine's own form, for store() and attend_cache()."""

    def linear_decode(self, x, group) -> tuple[Array, ...]:
        """linear() for a few rows, no backward."""

    def qk_norm_rope_store(
        self, qkv: tuple, gains, eps: float, table, positions, heads: Heads, neox, caches: tuple, places
    ) -> Array:
        """qk_norm_rope() of queries and keys; stores keys and values in the two caches -> the queries."""

    def logits(self, h, head) -> Array:
        """h [n, d] -> float32 [n, vocab]."""

    def cache(self, slots: int, context: int, width: int) -> Array:
        """Room for keys or values of `slots` sequences of up to `context` tokens."""

    def store(self, cache, places, rows: Array) -> None:
        """Write new rows [T, width] at their places."""

    def attend_cache(self, q, keys, values, places, heads: Heads, sinks=None) -> Array:
        """Attention of new tokens against caches that hold theirs already; sinks as in sink(), where engines offer
        "sinks"."""
