"""What most engines have in common: the state that callers set, and pairs of operations made of the single ones."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import numpy as np

from .algebra import HostAlgebra
from .base import Heads


class Composed:
    """Mixed into an engine. base.py says what the operations mean."""

    process_group: Any = None
    proved: bool | None = None
    device: Any = None
    workers: Any = None
    keeps_turned = keeps_attended = fp8 = has_fp8 = adapters_only = False
    widest = 0
    offers: frozenset[str] = frozenset()

    def own_answers(self) -> list:
        """There are none."""
        return []

    @staticmethod
    def each(pieces: Iterable) -> Iterable:
        """What a loop over pieces goes through: all of them, unless nothing is computed (see dry.py)."""
        return pieces

    def enter(self, layer: int) -> None:
        """Nothing depends on the layer."""

    @functools.cached_property
    def algebra(self) -> HostAlgebra:
        return HostAlgebra()

    def split(self, x, *widths: int):
        ends = np.cumsum(widths).tolist()
        return tuple(x[:, end - width : end] for end, width in zip(ends, widths))

    def join(self, parts):
        return self.joined(parts)

    def take_loads(self) -> dict[str, float]:
        return {}

    def attention_with(self, q, k, v, heads, sinks):
        """attention(), and sink()."""
        return self.sink(*self.attention(q, k, v, heads), sinks, heads)

    def head_norm(self, x, gain, eps: float, heads: int, still, positions):
        shape = Heads(heads, heads, x.shape[1] // heads, 0, 1.0)
        return self.qk_norm_rope(x, x, (gain, gain), eps, still, positions, shape, False)[0]

    def head_norm_backward(self, dy, x, gain, eps: float, heads: int, still, positions):
        shape = Heads(heads, heads, x.shape[1] // heads, 0, 1.0)
        nothing = self.scale(dy, 0.0)
        return self.qk_norm_rope_backward(dy, nothing, x, x, (gain, gain), eps, still, positions, shape, False)[0]

    def settle(self) -> None:
        """Gradients are added at once."""

    def lift(self, x):
        return self.view(x)

    def lower(self, values):
        x = self.array(*values.shape)
        x[...] = values
        return x

    def close(self) -> None:
        self.release()

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def decode_best(self, body, ids, spans, rows, most: int):
        logits = self.decode(body, ids, spans, rows)
        return None if logits is None else largest(logits, most)

    def norm_linear(self, x, gain, eps: float, group):
        return self.linear(self.rms_norm(x, gain, eps), group)

    def norm_linear_backward(
        self, dys, x, gain, eps: float, group, residual, need_dx: bool = True, then=None, into=None
    ):
        dh = self.linear_backward(dys, self.rms_norm(x, gain, eps), group, need_dx or into is not None)
        if into is not None:
            self.gain_gradient(dh, x, eps, into)
        return self.rms_norm_backward(dh, x, gain, eps, residual) if need_dx else None

    def glu_linear(self, gate, up, activation: str, group):
        return self.linear(self.glu(gate, up, activation), group)

    def glu_linear_backward(self, dy, gate, up, activation: str, group, then, need_dx: bool = True):
        da = self.linear_backward((dy,), self.glu(gate, up, activation), group, need_dx)
        return self.glu_backward(da, gate, up, activation) if need_dx else None

    def weighed_glu(self, gate, up, activation: str, routing):
        return self.weigh(self.glu(gate, up, activation), routing)

    def weighed_glu_backward(self, dy, gate, up, activation: str, routing):
        dy, dweights = self.weigh_backward(dy, self.glu(gate, up, activation), routing)
        return self.glu_backward(dy, gate, up, activation), dweights

    def qk_norm_rope_store(self, qkv, gains, eps: float, table, positions, heads, neox, caches, places):
        q, k, v = qkv
        q, k = self.qk_norm_rope(q, k, gains, eps, table, positions, heads, neox)
        for cache, rows in zip(caches, (k, v)):
            self.store(cache, places, rows)
        return q


def largest(logits: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """(ids int64 [n, most], logits [n, most]) of each row's largest, largest first; what is no number comes before."""
    if most == 1:
        ids = logits.argmax(1)[:, None]
    else:
        ids = (
            np.argpartition(logits, -most, axis=1)[:, -most:]
            if most < logits.shape[1]
            else np.broadcast_to(np.arange(logits.shape[1]), logits.shape)
        )
        found = np.take_along_axis(logits, ids, 1)
        order = np.argsort(np.where(np.isnan(found), -np.inf, -found), axis=1, kind="stable")
        ids = np.take_along_axis(ids, order, 1)
    return ids, np.take_along_axis(logits, ids, 1)
