"""How an adapter's low-rank pairs lie in one flat parameter vector."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Pair:
    """Where one pair lies in the flat vectors: a [rank, in] at a, b [out, rank] at b; many: (experts,) before each."""

    name: str
    rank: int
    in_features: int
    out_features: int
    a: int
    b: int
    many: tuple[int, ...] = ()

    def view_a(self, flat):
        return self._view(flat, self.a, self.rank, self.in_features)

    def view_b(self, flat):
        return self._view(flat, self.b, self.out_features, self.rank)

    def _view(self, flat, at: int, rows: int, columns: int):
        shape = (*self.many, rows, columns)
        return flat[at : at + math.prod(shape)].reshape(shape)


@dataclass(frozen=True)
class Layout:
    """All pairs of an adapter in one flat vector: every A first, then every B (so LoRA+ is two ranges)."""

    pairs: tuple[Pair, ...]
    size_a: int
    size: int

    @classmethod
    def of(cls, shapes: dict[str, tuple[int, ...]], rank: int) -> Layout:
        """shapes: {tensor: (out, in), or (experts, out, in)}."""
        at, starts = 0, {}
        for name, (*many, _, features) in shapes.items():
            starts[name] = at
            at += math.prod(many) * rank * features
        size_a, pairs = at, []
        for name, (*many, out, features) in shapes.items():
            pairs.append(Pair(name, rank, features, out, starts[name], at, tuple(many)))
            at += math.prod(many) * rank * out
        return cls(tuple(pairs), size_a, at)

    def start(self, seed: int, into: np.ndarray) -> None:
        """A uniform in ±1/sqrt(in) (Kaiming with a = sqrt 5, as peft starts), B zero; a stream per tensor."""
        into[self.size_a :] = 0
        for pair in self.pairs:
            stream = np.random.default_rng([seed & 0xFFFFFFFF, zlib.crc32(pair.name.encode())])
            bound = 1.0 / math.sqrt(pair.in_features)
            a = pair.view_a(into)
            a[...] = stream.uniform(-bound, bound, a.shape)
