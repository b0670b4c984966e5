"""The numba kernels of the formats with code books (see blocks_iq.py) and of the ternary ones.

Written as in kernels_numba.py, which compiles them: block s of src becomes the weights from dst[o] on.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from anytune.gguf.blocks_iq import EVEN_SIGNS
from anytune.gguf.codebooks import book
from anytune.simd.blocks import byte, field, half, load_bytes, scaled, store, uint16
from anytune.simd.half import half_of_bits

IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS, IQ3_S, IQ1 = map(book, ("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ1_S"))
HALF, QUARTER, DELTA = np.float32(0.5), np.float32(0.25), np.float32(0.125)
THREES = np.array([1, 3, 9, 27, 81], np.int32)


@njit(inline="always")
def _signed(dst, o, entries, index, count, scale, signs):
    """Write an entry of a code book, scaled, negative where a bit of `signs` is set."""
    for j in range(count):
        value = scale * entries[index, j]
        dst[o + j] = -value if signs >> j & 1 else value


@njit(inline="always")
def _shifted(dst, o, index, scale, negative):
    for j in range(8):
        dst[o + j] = scale * (IQ1[index, j] + (-DELTA if negative else DELTA))


def iq2_xxs(src, src_stride, src_offset, dst, dst_stride, dst_offset, rows, blocks):
    for r in range(rows):
        for b in range(blocks):
            s, o = src_offset + r * src_stride + 66 * b, dst_offset + r * dst_stride + 256 * b
            d = half(src, s)
            for i in range(8):
                at = s + 2 + 8 * i
                word = uint16(src, at + 4) | uint16(src, at + 6) << 16
                scale = d * (HALF + np.float32(byte(src, at + 7) >> 4)) * QUARTER
                for j in range(4):
                    signs = EVEN_SIGNS[word >> 7 * j & 127]
                    _signed(dst, o + 32 * i + 8 * j, IQ2_XXS, byte(src, at + j), 8, scale, signs)


def iq2_xs(src, src_stride, src_offset, dst, dst_stride, dst_offset, rows, blocks):
    for r in range(rows):
        for b in range(blocks):
            s, o = src_offset + r * src_stride + 74 * b, dst_offset + r * dst_stride + 256 * b
            d = half(src, s)
            for g in range(32):
                level = byte(src, s + 66 + (g >> 2)) >> (g >> 1 & 1) * 4 & 15
                scale = d * (HALF + np.float32(level)) * QUARTER
                q = uint16(src, s + 2 + 2 * g)
                _signed(dst, o + 8 * g, IQ2_XS, q & 511, 8, scale, EVEN_SIGNS[q >> 9])


def iq2_s(src, src_stride, src_offset, dst, dst_stride, dst_offset, rows, blocks):
    for r in range(rows):
        for b in range(blocks):
            s, o = src_offset + r * src_stride + 82 * b, dst_offset + r * dst_stride + 256 * b
            d = half(src, s)
            for g in range(32):
                level = byte(src, s + 74 + (g >> 2)) >> (g >> 1 & 1) * 4 & 15
                scale = d * (HALF + np.float32(level)) * QUARTER
                index = byte(src, s + 2 + g) | (byte(src, s + 66 + (g >> 2)) >> (g & 3) * 2 & 3) << 8
                _signed(dst, o + 8 * g, IQ2_S, index, 8, scale, byte(src, s + 34 + g))


def iq3_xxs(src, src_stride, src_offset, dst, dst_stride, dst_offset, rows, blocks):
    for r in range(rows):
        for b in range(blocks):
            s, o = src_offset + r * src_stride + 98 * b, dst_offset + r * dst_stride + 256 * b
            d = half(src, s)
            for i in range(8):
                at = s + 66 + 4 * i
                word = uint16(src, at) | uint16(src, at + 2) << 16
                scale = d * (HALF + np.float32(byte(src, at + 3) >> 4)) * HALF
                for j in range(8):
                    signs = EVEN_SIGNS[word >> 7 * (j >> 1) & 127] >> (j & 1) * 4
                    _signed(dst, o + 32 * i + 4 * j, IQ3_XXS, byte(src, s + 2 + 8 * i + j), 4, scale, signs)


def iq3_s(src, src_stride, src_offset, dst, dst_stride, dst_offset, rows, blocks):
    for r in range(rows):
        for b in range(blocks):
            s, o = src_offset + r * src_stride + 110 * b, dst_offset + r * dst_stride + 256 * b
            d = half(src, s)
            for g in range(64):
                scale = d * np.float32(2 * (byte(src, s + 106 + (g >> 4)) >> (g >> 3 & 1) * 4 & 15) + 1)
                index = byte(src, s + 2 + g) | (byte(src, s + 66 + (g >> 3)) >> (g & 7) & 1) << 8
                _signed(dst, o + 4 * g, IQ3_S, index, 4, scale, byte(src, s + 74 + (g >> 1)) >> (g & 1) * 4)


def iq1_s(src, src_stride, src_offset, dst, dst_stride, dst_offset, rows, blocks):
    for r in range(rows):
        for b in range(blocks):
            s, o = src_offset + r * src_stride + 50 * b, dst_offset + r * dst_stride + 256 * b
            d = half(src, s)
            for g in range(32):
                high = uint16(src, s + 34 + 2 * (g >> 2))
                scale = d * np.float32(2 * (high >> 12 & 7) + 1)
                index = byte(src, s + 2 + g) | (high >> 3 * (g & 3) & 7) << 8
                _shifted(dst, o + 8 * g, index, scale, high >> 15)


def iq1_m(src, src_stride, src_offset, dst, dst_stride, dst_offset, rows, blocks):
    for r in range(rows):
        for b in range(blocks):
            s, o = src_offset + r * src_stride + 56 * b, dst_offset + r * dst_stride + 256 * b
            low = byte(src, s + 49) >> 4 | byte(src, s + 51) & 0xF0
            d = half_of_bits(low | (byte(src, s + 53) >> 4 | byte(src, s + 55) & 0xF0) << 8)
            for g in range(32):
                word = uint16(src, s + 48 + 2 * (g >> 3))
                scale = d * np.float32(2 * (word >> 3 * (g >> 1 & 3) & 7) + 1)
                high = byte(src, s + 32 + (g >> 1)) >> (g & 1) * 4
                _shifted(dst, o + 8 * g, byte(src, s + g) | (high & 7) << 8, scale, high & 8)


def tq1_0(src, src_stride, src_offset, dst, dst_stride, dst_offset, rows, blocks):
    for r in range(rows):
        for b in range(blocks):
            s, o = src_offset + r * src_stride + 54 * b, dst_offset + r * dst_stride + 256 * b
            d = half(src, s + 52)
            for first, group, digits, place in ((0, 32, 5, 0), (32, 16, 5, 160), (48, 4, 4, 240)):
                for k in range(digits):
                    for j in range(group):
                        digit = (byte(src, s + first + j) * THREES[k] & 255) * 3 >> 8
                        dst[o + place + group * k + j] = d * np.float32(digit - 1)


def tq2_0(src, src_stride, src_offset, dst, dst_stride, dst_offset, rows, blocks):
    for r in range(rows):
        for b in range(blocks):
            s, o = src_offset + r * src_stride + 66 * b, dst_offset + r * dst_stride + 256 * b
            d = half(src, s + 64)
            for i in range(16):
                q = field(load_bytes(src, s + 32 * (i >> 3) + 16 * (i & 1)), (i >> 1 & 3) * 2, 3)
                store(dst, o + 16 * i, scaled(d, q, 1))


FUNCTIONS = {
    function.__name__.upper(): function
    for function in (iq2_xxs, iq2_xs, iq2_s, iq3_xxs, iq3_s, iq1_s, iq1_m, tq1_0, tq2_0)
}
