"""The block formats with code books (IQ1, IQ2, IQ3): eight or four weights at a time are an entry of a book.

In this file: b is uint8 [n, type_size] (n blocks of 256 weights), and the result is float32 [n, 256].
"""

from __future__ import annotations

import numpy as np

from anytune.gguf.codebooks import book
from anytune.gguf.fields import F16, U16, U32, fields, half, scaled, words

QUARTER, HALF, DELTA = np.float32(0.25), np.float32(0.5), np.float32(0.125)
# Seven sign bits and an eighth that makes their number even: [128], bit j for weight j.
EVEN_SIGNS = np.array([i | (i.bit_count() & 1) << 7 for i in range(128)], np.uint8)


def _entries(name: str, index: np.ndarray) -> np.ndarray:
    """Entries [n, k] of a book, as weights: float32 [n, 256]."""
    return book(name)[index].reshape(len(index), -1)


def _signs(b: np.ndarray) -> np.ndarray:
    """A sign bit for each weight: [n, 32] bytes to float32 [n, 256] of 1 and -1."""
    return np.float32(1) - np.float32(2) * np.unpackbits(b, axis=1, bitorder="little").astype(np.float32)


def _bits(w: np.ndarray, shifts: tuple[int, ...], mask: int) -> np.ndarray:
    """Fields of each word of w [n, k]: [n, k * shifts]."""
    return (w[:, :, None] >> np.array(shifts, w.dtype) & w.dtype.type(mask)).reshape(len(w), -1)


def _signs_and_scale(w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Words [n, 8] of four times seven sign bits and a 4-bit scale: (signs [n, 256], scales [n, 8])."""
    return _signs(EVEN_SIGNS[_bits(w, (0, 7, 14, 21), 127)]), (w >> np.uint32(28)).astype(np.float32)


def iq2_xxs(b):
    w = words(b[:, 2:], U32)
    signs, scales = _signs_and_scale(w[:, 1::2])
    index = np.ascontiguousarray(w[:, ::2]).view(np.uint8)
    return scaled(half(b, 0) * (HALF + scales) * QUARTER, _entries("IQ2_XXS", index)) * signs


def iq2_xs(b):
    q = words(b[:, 2:66], U16)
    scales = half(b, 0) * (HALF + fields(b[:, 66:], 1, 4).astype(np.float32)) * QUARTER
    return scaled(scales, _entries("IQ2_XS", q & np.uint16(511))) * _signs(EVEN_SIGNS[q >> np.uint16(9)])


def iq2_s(b):
    index = b[:, 2:34] | fields(b[:, 66:74], 1, 2).astype(np.uint16) << np.uint16(8)
    scales = half(b, 0) * (HALF + fields(b[:, 74:], 1, 4).astype(np.float32)) * QUARTER
    return scaled(scales, _entries("IQ2_S", index)) * _signs(b[:, 34:66])


def iq3_xxs(b):
    signs, scales = _signs_and_scale(words(b[:, 66:], U32))
    return scaled(half(b, 0) * (HALF + scales) * HALF, _entries("IQ3_XXS", b[:, 2:66])) * signs


def iq3_s(b):
    index = b[:, 2:66] | fields(b[:, 66:74], 1, 1).astype(np.uint16) << np.uint16(8)
    scales = half(b, 0) * (2 * fields(b[:, 106:], 1, 4) + 1).astype(np.float32)
    return scaled(scales, _entries("IQ3_S", index)) * _signs(b[:, 74:106])


def iq1_s(b):
    high = words(b[:, 34:], U16)
    index = b[:, 2:34] | _bits(high, (0, 3, 6, 9), 7) << np.uint16(8)
    delta = np.where(high >> np.uint16(15), -DELTA, DELTA).repeat(32, axis=1)
    scales = half(b, 0) * (2 * (high >> np.uint16(12) & np.uint16(7)) + 1).astype(np.float32)
    return scaled(scales, _entries("IQ1_S", index) + delta)


def iq1_m(b):
    high, w = fields(b[:, 32:48], 1, 4), words(b[:, 48:], U16)
    top = w >> np.uint16(12)  # the block's float16 scale is in the top four bits of four words
    d = top[:, :1] | top[:, 1:2] << np.uint16(4) | top[:, 2:3] << np.uint16(8) | top[:, 3:] << np.uint16(12)
    scales = d.view(F16).astype(np.float32) * (2 * _bits(w, (0, 3, 6, 9), 7) + 1).astype(np.float32)
    index = b[:, :32] | (high & np.uint8(7)).astype(np.uint16) << np.uint16(8)
    delta = np.where(high >> np.uint8(3), -DELTA, DELTA).repeat(8, axis=1)
    return scaled(scales, _entries("IQ1_S", index) + delta)
