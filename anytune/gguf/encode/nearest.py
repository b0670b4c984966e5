"""The formats that need no search, in NumPy: those of quantizers.py, and Q1_0, Q2_0, TQ1_0, TQ2_0 and MXFP4.

x is float32 [n, block_size]; the result is uint8 [n, type_size], the bytes that llama.cpp writes.
"""

from __future__ import annotations

import numpy as np

from anytune.gguf import quantizers
from anytune.gguf.encode.pack import fields

# Between the magnitudes that MXFP4 knows, doubled as in blocks.py: 0 1 2 3 4 6 8 12. A tie takes the smaller.
MIDDLES = (0.5, 1.5, 2.5, 3.5, 5.0, 7.0, 10.0)


def _ternary(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(float16 bytes of the largest size, 0, 1 or 2 for each weight): halves are rounded away from zero."""
    d = np.abs(x).max(axis=1, keepdims=True)
    scaled = x * np.where(d == 0, np.float32(0), np.float32(1) / d)
    nonzero = (np.abs(scaled) >= 0.5) & np.isfinite(scaled)  # not finite: below float32's range
    q = np.where(nonzero, np.sign(scaled), np.float32(0))
    return d.astype("<f2").view(np.uint8), (q + 1).astype(np.uint8)


def _trits(q: np.ndarray, group: int, count: int) -> np.ndarray:
    """`count` digits of base 3 to a byte, the first the highest, as a fraction of 256 rounded up."""
    digits = q.reshape(len(q), -1, count, group).astype(np.uint16)
    number = np.zeros(digits[:, :, 0].shape, np.uint16)
    for k in range(5):
        number *= 3
        if k < count:
            number += digits[:, :, k]
    return ((number * np.uint16(256) + np.uint16(242)) // np.uint16(243)).astype(np.uint8).reshape(len(q), -1)


def q1_0(x: np.ndarray) -> np.ndarray:
    """A weight's sign, times the mean size: summed one by one, as llama.cpp does."""
    total = np.zeros(len(x), np.float32)
    for column in np.abs(x).T:
        total += column
    d = (total / np.float32(x.shape[1]))[:, None].astype("<f2").view(np.uint8)
    return np.concatenate([d, np.packbits(x >= 0, axis=1, bitorder="little")], axis=1)


def q2_0(x: np.ndarray) -> np.ndarray:
    """As the ternary formats, in groups of 64; where the scale is below float32's range, all -1."""
    d, q = _ternary(x)
    tiny = np.isinf(np.float32(1) / np.abs(x).max(axis=1, keepdims=True)) & (x.any(axis=1, keepdims=True))
    return np.concatenate([d, fields(np.where(tiny, np.uint8(0), q), 1, 2)], axis=1)


def tq1_0(x: np.ndarray) -> np.ndarray:
    d, q = _ternary(x)
    return np.concatenate(
        [_trits(q[:, :160], 32, 5), _trits(q[:, 160:240], 16, 5), _trits(q[:, 240:], 4, 4), d], axis=1
    )


def tq2_0(x: np.ndarray) -> np.ndarray:
    d, q = _ternary(x)
    return np.concatenate([fields(q, 32, 2), d], axis=1)


def mxfp4(x: np.ndarray) -> np.ndarray:
    """The scale is the power of two that brings the largest size to 4 or more, and below 8."""
    peak = np.abs(x).max(axis=1, keepdims=True)
    with np.errstate(divide="ignore"):
        e = np.where(peak > 0, np.floor(np.log2(peak)) + 125, 0).astype(np.uint8)
    unit = np.ldexp(np.float32(1), e.astype(np.int32) - 128)
    code = np.zeros(x.shape, np.uint8)
    for middle in MIDDLES:
        code += np.abs(x) > np.float32(middle) * unit
    code |= np.where((x < 0) & (code > 0), np.uint8(8), np.uint8(0))
    return np.concatenate([e, fields(code, 16, 4)], axis=1)


def q4_0(x: np.ndarray) -> np.ndarray:
    """As llama.cpp does it: a block of zeros has one scale, whatever the zeros' signs."""
    return quantizers.q4_0(x + np.float32(0))


def q5_0(x: np.ndarray) -> np.ndarray:
    return quantizers.q5_0(x + np.float32(0))


FUNCTIONS = {name.upper(): getattr(quantizers, name) for name in ("f32", "f16", "bf16", "q4_1", "q5_1", "q8_0")}
FUNCTIONS |= {"Q4_0": q4_0, "Q5_0": q5_0, "Q1_0": q1_0, "Q2_0": q2_0, "TQ1_0": tq1_0, "TQ2_0": tq2_0, "MXFP4": mxfp4}
