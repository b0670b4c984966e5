"""Level numbers and scales into the bytes of ggml's blocks; blocks.py takes them apart again.

In this file: q is uint8 [n, weights], the level numbers of n blocks; out is float32 [n, numbers], what is beside
them: integers of the blocks, then the float16 factors. The result is uint8 [n, type_size].
"""

from __future__ import annotations

import numpy as np


def _half(out: np.ndarray, column: int) -> np.ndarray:
    return np.ascontiguousarray(out[:, column : column + 1].astype("<f2")).view(np.uint8)


def fields(q: np.ndarray, group: int, bits: int) -> np.ndarray:
    """8 / bits numbers to a byte, lowest bits first: of each run of weights, the first `group` in the lowest bits."""
    count = 8 // bits
    parts = q.reshape(len(q), -1, count, group)
    packed = parts[:, :, 0].copy()
    for k in range(1, count):
        packed |= parts[:, :, k] << np.uint8(bits * k)
    return packed.reshape(len(q), -1)


def _fifth(q: np.ndarray) -> np.ndarray:
    return np.packbits(q >> np.uint8(4), axis=1, bitorder="little")


def _six_bits(ls: np.ndarray, lm: np.ndarray) -> np.ndarray:
    """Eight 6-bit scales and eight 6-bit floors, uint8 [n, 8] each, in twelve bytes."""
    low = ls[:, :4] | ls[:, 4:] >> np.uint8(4) << np.uint8(6)
    high = lm[:, :4] | lm[:, 4:] >> np.uint8(4) << np.uint8(6)
    return np.concatenate([low, high, ls[:, 4:] & np.uint8(15) | lm[:, 4:] << np.uint8(4)], axis=1)


def _bytes(out: np.ndarray, first: int, last: int) -> np.ndarray:
    return out[:, first:last].astype(np.uint8)


def q4_0(q, out):
    return np.concatenate([_half(out, 0), fields(q, 16, 4)], axis=1)


def q4_1(q, out):
    return np.concatenate([_half(out, 0), _half(out, 1), fields(q, 16, 4)], axis=1)


def q5_0(q, out):
    return np.concatenate([_half(out, 0), _fifth(q), fields(q & np.uint8(15), 16, 4)], axis=1)


def q5_1(q, out):
    return np.concatenate([_half(out, 0), _half(out, 1), _fifth(q), fields(q & np.uint8(15), 16, 4)], axis=1)


def q2_k(q, out):
    scales = _bytes(out, 0, 16) | _bytes(out, 16, 32) << np.uint8(4)
    return np.concatenate([scales, fields(q, 32, 2), _half(out, 32), _half(out, 33)], axis=1)


def q3_k(q, out):
    scales = (out[:, :16] + 32).astype(np.uint8)
    high = scales >> np.uint8(4)
    tails = high[:, :4] | high[:, 4:8] << np.uint8(2) | high[:, 8:12] << np.uint8(4) | high[:, 12:] << np.uint8(6)
    top = fields(q >> np.uint8(2), 32, 1)
    return np.concatenate(
        [top, fields(q & np.uint8(3), 32, 2), fields(scales & np.uint8(15), 8, 4), tails, _half(out, 16)], axis=1
    )


def q4_k(q, out):
    return np.concatenate(
        [_half(out, 16), _half(out, 17), _six_bits(_bytes(out, 0, 8), _bytes(out, 8, 16)), fields(q, 32, 4)], axis=1
    )


def q5_k(q, out):
    return np.concatenate(
        [
            _half(out, 16),
            _half(out, 17),
            _six_bits(_bytes(out, 0, 8), _bytes(out, 8, 16)),
            fields(q >> np.uint8(4), 32, 1),
            fields(q & np.uint8(15), 32, 4),
        ],
        axis=1,
    )


def q6_k(q, out):
    return np.concatenate(
        [
            fields(q & np.uint8(15), 64, 4),
            fields(q >> np.uint8(4), 32, 2),
            out[:, :16].astype(np.int8).view(np.uint8),
            _half(out, 16),
        ],
        axis=1,
    )


iq4_nl = q4_0


def iq4_xs(q, out):
    scales = (out[:, :8] + 32).astype(np.uint8)
    high = (scales >> np.uint8(4)).astype("<u2") << np.arange(0, 16, 2, dtype=np.uint16)
    high = np.bitwise_or.reduce(high, axis=1, keepdims=True).astype("<u2").view(np.uint8)
    return np.concatenate([_half(out, 8), high, fields(scales & np.uint8(15), 1, 4), fields(q, 16, 4)], axis=1)
