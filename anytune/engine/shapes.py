"""What operations are told of shapes, and what goes from step to step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Array = Any
Number = Any


@dataclass(frozen=True)
class Heads:
    """Shape of an attention: query heads, key heads, width of a head, window (0: none), scale of scores; cap: scaled
    scores s become cap * tanh(s / cap), unless it is 0; sinks: whether sink() follows, so that probabilities add up to
    less than 1."""

    n_heads: int
    n_kv_heads: int
    head_dim: int
    window: int
    scale: float
    cap: float = 0.0
    sinks: bool = False

    @property
    def group(self) -> int:
        """Query heads per key head."""
        return self.n_heads // self.n_kv_heads


@dataclass(frozen=True)
class DeltaHeads:
    """Shape of a gated delta net: key heads, value heads (number h reads key head h % keys), their widths, and the eps
    of its norms."""

    keys: int
    values: int
    key_size: int
    value_size: int
    eps: float

    @property
    def repeats(self) -> int:
        """Value heads per key head."""
        return self.values // self.keys

    @property
    def inner(self) -> int:
        """Columns of the values, and of the result."""
        return self.values * self.value_size

    @property
    def width(self) -> int:
        """Columns of queries, keys and values side by side."""
        return 2 * self.keys * self.key_size + self.inner


@dataclass(frozen=True)
class LatentHeads:
    """Shape of latent attention's heads. `nope` columns of a key are made of the latent, `rope` columns are the same
    in all heads; value: columns of a value; rank: of the latent."""

    heads: int
    rank: int
    nope: int
    rope: int
    value: int

    @property
    def keys(self) -> int:
        """Columns of a key."""
        return self.nope + self.rope

    @property
    def size(self) -> int:
        """Columns that keys and values both fit: the others are zero."""
        return max(self.keys, self.value)


LEAST_SUM = 2.0**-14  # that a router's weights are normalized by, as in llama.cpp


@dataclass(frozen=True)
class Router:
    """How tokens choose experts: `used` of `experts`, ties going to the lower number.

    kind: of the scores' weights: "softmax" over all, "sigmoid", or "chosen", a softmax over those of the chosen;
    normalized: whether those of the chosen are made to add up to 1; scale: what all are multiplied with. groups: that
    experts are cut into, of which those `near` with the largest sums of their two best may be chosen from.
    """

    experts: int
    used: int
    kind: str = "softmax"
    normalized: bool = True
    scale: float = 1.0
    groups: int = 1
    near: int = 1


@dataclass(frozen=True)
class Stream:
    """One micro-batch: T tokens of n packed examples, of which M carry loss. Host arrays, or an engine's own.

    ids, positions int32 [T]; starts int32 [n+1], the examples' boundaries (always on the host); rows int32 [M],
    where the loss is; targets int32 [M]; scale: of the gradient, a number or an engine's own; capacity: the most
    tokens that any stream of the run has; key: (seed, step, micro-batch) for dropout.
    """

    ids: Any
    positions: Any
    starts: Any
    rows: Any
    targets: Any
    scale: Any
    capacity: int
    key: tuple[int, int, int] = (0, 0, 0)
