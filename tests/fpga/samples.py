"""Awkward operands: any finite scale (subnormal, zero, negative), largest sums, terms that cancel, ties, zero rows,
gradients down to the least normal number."""

import numpy as np

from anytune.fpga.formats import SIZES, Rounded, bf16

# float16 numbers that a block begins with
NEOX = {"Q4_0": 1, "Q8_0": 1, "Q4_1": 2, "Q5_0": 1, "Q5_1": 2, "Q4_K": 2}


def neox(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Finite float16 numbers as uint16, a tenth of them zero; exponents of one of four kinds."""
    low, high = ((0, 31), (0, 3), (5, 12), (14, 16))[rng.integers(4)]
    bits = rng.integers(0, 1024, shape) | rng.integers(low, high, shape) << 10 | rng.integers(0, 2, shape) << 15
    bits[rng.random(shape) < 0.1] = 0
    return bits.astype("<u2")


def awkward_blocks(rng: np.random.Generator, n: int, k: int, name: str) -> np.ndarray:
    """uint8 [n, bytes] of blocks of a format."""
    weights, size = SIZES[name]
    b = rng.integers(0, 256, (n, k // weights, size), dtype=np.uint8)
    for i in range(NEOX[name]):
        b[..., 2 * i : 2 * i + 2] = neox(rng, n, k // weights).view(np.uint8).reshape(n, -1, 2)
    if rng.random() < 0.2:
        b[..., 2 * NEOX[name] :] = rng.choice([0, 255])
    return b.reshape(n, -1)


def awkward_rounded(rng: np.random.Generator, tokens: int, k: int) -> Rounded:
    q = rng.integers(-127, 128, (tokens, k)).astype(np.int8)
    kind = rng.integers(4)
    if kind == 0:
        q = np.where(rng.random(q.shape) < 0.5, 127, -127).astype(np.int8)
    if kind == 1 and k > 32:
        q[:, 32:] = -q[:, :-32]  # blocks that cancel where their scales agree
    scale = np.abs(neox(rng, tokens, k // 32).view("<f2").astype(np.float32))
    return Rounded(q, scale)


def awkward_gradients(rng: np.random.Generator, tokens: int, n: int) -> np.ndarray:
    each = (tokens, n if rng.random() < 0.5 else 1)
    y = rng.standard_normal((tokens, n)) * 10.0 ** rng.integers(-38, 6, each)
    if rng.random() < 0.3:
        y = np.sign(y) * 2.0 ** rng.integers(-8, 6, y.shape) * rng.integers(1, 4, y.shape)  # ties
    y[rng.random(y.shape) < 0.1] = 0
    y[rng.integers(tokens)] = 0
    return bf16(y.astype(np.float32))
