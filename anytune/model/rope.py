"""How positions turn heads, and the angles: one table of cosines and sines for each way to turn that a model has."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from .config import Config


@dataclass(frozen=True)
class RopeScaling:
    """How positions beyond the original context are reached. kind: none, linear or yarn."""

    kind: str = "none"
    factor: float = 1.0
    original_context: int = 0
    attention_factor: float = 1.0
    fast: float = 32.0  # YaRN's rotations per context between which it blends (Peng et al. 2023)
    slow: float = 1.0
    log_factor: float = 0.0  # of the magnitude that YaRN's is divided by


@dataclass(frozen=True)
class Rope:
    """How a position turns a head. size: dimensions that turn; base: 0 turns nothing; factors: whether the file's table
    divides the angles, if it has one. heat, reach: queries are scaled by 1 + heat log(1 + position // reach)."""

    size: int
    base: float
    scaling: RopeScaling = RopeScaling()
    factors: bool = False
    heat: float = 0.0
    reach: int = 0


STILL = Rope(2, 0.0)  # turns nothing: for norms of heads that are not turned


def angles(size: int, base: float, scaling: RopeScaling, factors: np.ndarray | None = None):
    """(frequencies float64 [size/2], magnitude): radians a position turns each pair, and YaRN's scale.

    factors: Llama 3's divisors of the frequencies (the GGUF tensor rope_freqs.weight), or None.
    """
    pairs = np.arange(size // 2)
    plain = base ** (-2.0 * pairs / size)
    if factors is not None:
        plain = plain / factors
    if scaling.kind == "none":
        return plain, scaling.attention_factor
    stretched = plain / scaling.factor
    if scaling.kind == "linear":
        return stretched, scaling.attention_factor

    def dimension(rotations: float) -> float:
        return size * math.log(scaling.original_context / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low = max(0.0, math.floor(dimension(scaling.fast)))
    high = min(size - 1.0, math.ceil(dimension(scaling.slow)))
    grown = 0.1 * math.log(max(1.0, scaling.factor))
    magnitude = (1 + grown) / (1 + scaling.log_factor * grown)
    keep = 1.0 - np.clip((pairs - low) / max(0.001, high - low), 0.0, 1.0)
    return stretched * (1 - keep) + plain * keep, scaling.attention_factor * magnitude


def tables(config: Config, context: int, factors: np.ndarray | None = None) -> dict[Rope, tuple]:
    """{rope: (cos, sin)} float32 [context, size/2], for each way in which some layer turns; where queries of such
    positions are scaled, their scale [context, 1] is the third."""
    position = np.arange(context, dtype=np.float64)[:, None]

    def table(rope: Rope) -> tuple[np.ndarray, ...]:
        if not rope.base:
            turn, magnitude = np.zeros(rope.size // 2), 1.0
        else:
            turn, magnitude = angles(rope.size, rope.base, rope.scaling, factors if rope.factors else None)
        made = [np.cos(position * turn) * magnitude, np.sin(position * turn) * magnitude]
        if rope.heat and context > rope.reach:
            made.append(1 + rope.heat * np.log(1 + position // rope.reach))
        return tuple(values.astype(np.float32) for values in made)

    return {rope: table(rope) for rope in config.ropes}
