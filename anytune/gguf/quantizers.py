"""From float32 to blocks, for the formats that need no search: bit-equal to the `gguf` package.

x is float32 [n, block_size]; the result is uint8 [n, type_size]. The layouts are explained in blocks.py.
"""

from __future__ import annotations

import numpy as np


def f32(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x, "<f4").view(np.uint8)


def f16(x: np.ndarray) -> np.ndarray:
    return x.astype("<f2").view(np.uint8)


def bf16(x: np.ndarray) -> np.ndarray:
    """Round to nearest even; NaN stays NaN (the rounding could carry it into infinity)."""
    bits = x.astype("<f4", "C", copy=False).view(np.uint32)
    rounded = bits.astype(np.uint64) + 0x7FFF + (bits >> np.uint32(16) & np.uint32(1)) >> np.uint64(16)
    nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    return np.where(nan, bits >> np.uint32(16) | np.uint32(64), rounded).astype("<u2").view(np.uint8)


def _inverse(d: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.where(d == 0, np.float32(0), np.float32(1) / d)


def _half(d: np.ndarray) -> np.ndarray:
    return d.astype("<f2").view(np.uint8)


def _nibbles(q: np.ndarray) -> np.ndarray:
    return q[:, :16] & np.uint8(15) | q[:, 16:] << np.uint8(4)


def _fifth_bits(q: np.ndarray) -> np.ndarray:
    return np.packbits(q >> np.uint8(4), axis=1, bitorder="little")


def _symmetric(x: np.ndarray, levels: int) -> tuple[np.ndarray, np.ndarray]:
    """The value that is largest in magnitude (with its sign) becomes the lowest level."""
    peak = np.take_along_axis(x, np.abs(x).argmax(axis=1, keepdims=True), axis=1)
    d = peak / np.float32(-levels)
    q = np.trunc(x * _inverse(d) + np.float32(levels + 0.5)).astype(np.uint8)
    return d, q.clip(0, 2 * levels - 1)


def _affine(x: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    low = x.min(axis=1, keepdims=True)
    d = (x.max(axis=1, keepdims=True) - low) / np.float32(top)
    q = np.trunc((x - low) * _inverse(d) + np.float32(0.5)).astype(np.uint8)
    return d, low, q.clip(0, top)


def q4_0(x: np.ndarray) -> np.ndarray:
    d, q = _symmetric(x, 8)
    return np.concatenate([_half(d), _nibbles(q)], axis=1)


def q4_1(x: np.ndarray) -> np.ndarray:
    d, low, q = _affine(x, 15)
    return np.concatenate([_half(d), _half(low), _nibbles(q)], axis=1)


def q5_0(x: np.ndarray) -> np.ndarray:
    d, q = _symmetric(x, 16)
    return np.concatenate([_half(d), _fifth_bits(q), _nibbles(q)], axis=1)


def q5_1(x: np.ndarray) -> np.ndarray:
    d, low, q = _affine(x, 31)
    return np.concatenate([_half(d), _half(low), _fifth_bits(q), _nibbles(q)], axis=1)


def q8_0(x: np.ndarray) -> np.ndarray:
    """Halves are rounded away from zero."""
    d = np.abs(x).max(axis=1, keepdims=True) / np.float32(127)
    scaled = x * _inverse(d)
    size = np.abs(scaled)
    whole = np.floor(size)
    q = np.sign(scaled) * (whole + np.floor(np.float32(2) * (size - whole)))
    return np.concatenate([_half(d), q.astype(np.int8).view(np.uint8)], axis=1)
