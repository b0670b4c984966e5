"""Floating-point operations of an engine's operations, by their definition: what time is estimated from.

A multiplication and an addition are two. What is small beside products (norms, rotations, gated products) is left out.
"""

from __future__ import annotations

from typing import Any

from .base import DeltaHeads, Heads
from .dry import Ledger

CHUNK = 64  # tokens that a gated delta net takes at a time


class Operations:
    """An engine whose operations enter their arithmetic into a ledger.

    seen: keys that a token sees on average, where no window is narrower.
    """

    def __init__(self, engine: Any, ledger: Ledger, seen: float):
        self.engine, self.ledger, self.seen = engine, ledger, seen

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def _forward(self, tokens: int, group: Any) -> None:
        self.ledger.compute(2.0 * tokens * (_matrices(group.weights) + _pairs(group)))

    def _backward(self, tokens: int, group: Any, need_dx: bool) -> None:
        trained = [w for w in group.weights if w.gradient is not None]
        products = _matrices(trained) + (_matrices(group.weights) if need_dx else 0)
        self.ledger.compute(2.0 * tokens * (products + 2 * _pairs(group)))

    def linear(self, x, group):
        self._forward(x.shape[0], group)
        return self.engine.linear(x, group)

    def norm_linear(self, x, gain, eps, group):
        self._forward(x.shape[0], group)
        return self.engine.norm_linear(x, gain, eps, group)

    def glu_linear(self, gate, up, activation, group):
        self._forward(gate.shape[0], group)
        return self.engine.glu_linear(gate, up, activation, group)

    def linear_backward(self, dys, x, group, need_dx=True):
        self._backward(x.shape[0], group, need_dx)
        return self.engine.linear_backward(dys, x, group, need_dx)

    def norm_linear_backward(self, dys, x, gain, eps, group, residual, need_dx=True, then=None, into=None):
        self._backward(x.shape[0], group, need_dx)
        return self.engine.norm_linear_backward(dys, x, gain, eps, group, residual, need_dx, then, into)

    def glu_linear_backward(self, dy, gate, up, activation, group, then, need_dx=True):
        self._backward(gate.shape[0], group, need_dx)
        return self.engine.glu_linear_backward(dy, gate, up, activation, group, then, need_dx)

    def _experts(self, slots: int, group: Any, products: float) -> None:
        one = sum(w.expert_features * w.in_features for w in group.weights)
        self.ledger.compute(2.0 * slots * products * (one + _pairs(group)))

    def expert_linear(self, x, group, routing):
        self._experts(x.shape[0], group, 1)
        return self.engine.expert_linear(x, group, routing)

    def expert_linear_backward(self, dys, x, group, routing, need_dx=True):
        self._experts(dys[0].shape[0], group, need_dx + group.trains_matrix)
        return self.engine.expert_linear_backward(dys, x, group, routing, need_dx)

    def _attend(self, tokens: int, heads: Heads, products: int) -> None:
        seen = min(self.seen, heads.window or self.seen)
        self.ledger.compute(2.0 * products * tokens * heads.n_heads * heads.head_dim * seen)

    def attention(self, q, k, v, heads: Heads):
        self._attend(q.shape[0], heads, 2)
        return self.engine.attention(q, k, v, heads)

    def attention_backward(self, dout, q, k, v, out, lse, heads: Heads):
        self._attend(q.shape[0], heads, 5)
        return self.engine.attention_backward(dout, q, k, v, out, lse, heads)

    def _delta(self, tokens: int, h: DeltaHeads, times: int) -> None:
        sizes = 3 * h.key_size * h.value_size + 2 * CHUNK * (h.key_size + h.value_size)
        self.ledger.compute(2.0 * times * tokens * h.values * sizes)

    def delta(self, x, beta, alpha, weights, heads: DeltaHeads):
        self._delta(x.shape[0], heads, 1)
        return self.engine.delta(x, beta, alpha, weights, heads)

    def delta_backward(self, dy, x, beta, alpha, weights, heads: DeltaHeads, kept, into=(None, None, None)):
        self._delta(x.shape[0], heads, 3)
        return self.engine.delta_backward(dy, x, beta, alpha, weights, heads, kept, into)

    def cross_entropy(self, h, head, targets, scale, gradient):
        self._forward(h.shape[0], head)
        if gradient:
            self._backward(h.shape[0], head, True)
        return self.engine.cross_entropy(h, head, targets, scale, gradient)


def _matrices(weights) -> int:
    return sum(w.out_features * w.in_features for w in weights)


def _pairs(group) -> int:
    """Numbers in the low-rank pairs of a group."""
    pairs = [p for p in group.pairs or () if p is not None]
    return sum(p.a.shape[-2] * (p.a.shape[-1] + p.b.shape[-2]) for p in pairs)
