"""Taking blocks apart: the packed scales and small integers that all formats are made of.

In this file: b is uint8 [n, bytes], a part of each of n blocks.
"""

from __future__ import annotations

import numpy as np

F16, U16, U32 = (np.dtype(name) for name in ("<f2", "<u2", "<u4"))


def half(b: np.ndarray, at: int) -> np.ndarray:
    """The float16 at byte `at` of each block: float32 [n, 1]."""
    return np.ascontiguousarray(b[:, at : at + 2]).view(F16).astype(np.float32)


def words(b: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Bytes as little-endian words: [n, bytes / itemsize]."""
    return np.ascontiguousarray(b).view(dtype)


def fields(b: np.ndarray, group: int, bits: int, count: int | None = None) -> np.ndarray:
    """Small integers packed `count` to a byte, lowest bits first.

    Within each run of `group` bytes the first field of every byte comes first, then the second, and so on.
    """
    n, size = b.shape
    shifts = np.arange(0, bits * (count or 8 // bits), bits, dtype=np.uint8)
    fields = b.reshape(n, size // group, 1, group) >> shifts[:, None] & np.uint8((1 << bits) - 1)
    return fields.reshape(n, -1)


def scaled(scales: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Each of the s scales [n, s] times its equal share of q [n, w]."""
    n, s = scales.shape
    return (scales[:, :, None] * q.astype(np.float32, copy=False).reshape(n, s, -1)).reshape(n, -1)


def scaled_less(scales: np.ndarray, q: np.ndarray, mins: np.ndarray) -> np.ndarray:
    n, s = scales.shape
    y = scales[:, :, None] * q.astype(np.float32, copy=False).reshape(n, s, -1)
    return (y - mins[:, :, None]).reshape(n, -1)
