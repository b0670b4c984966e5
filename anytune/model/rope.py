"""Rotary angles: one table of cosines and sines for each rope base that a model uses."""

from __future__ import annotations

import math

import numpy as np

from .config import Config, RopeScaling

BETA_FAST, BETA_SLOW = 32.0, 1.0  # YaRN's rotations per context between which it blends (Peng et al. 2023)


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

    low = max(0.0, math.floor(dimension(BETA_FAST)))
    high = min(size - 1.0, math.ceil(dimension(BETA_SLOW)))
    magnitude = 1 + 0.1 * math.log(max(1.0, scaling.factor))
    keep = 1.0 - np.clip((pairs - low) / max(0.001, high - low), 0.0, 1.0)
    return stretched * (1 - keep) + plain * keep, scaling.attention_factor * magnitude


def tables(config: Config, context: int, factors: np.ndarray | None = None) -> dict[bool, tuple]:
    """{windowed: (cos, sin)} float32 [context, size/2], for global layers and, if they differ, local ones."""
    position = np.arange(context, dtype=np.float64)[:, None]

    def table(base: float, scaling: RopeScaling, divisors):
        turn, magnitude = angles(config.rope_size, base, scaling, divisors)
        return (
            (np.cos(position * turn) * magnitude).astype(np.float32),
            (np.sin(position * turn) * magnitude).astype(np.float32),
        )

    every = table(config.rope_base, config.scaling, factors)
    if config.local_base is None:
        return {False: every, True: every}
    unscaled = RopeScaling(attention_factor=config.scaling.attention_factor)
    return {False: every, True: table(config.local_base, unscaled, None)}
