"""The numba kernels behind kernels.py: how one block of each format becomes floats. Layouts: see blocks.py.

In this file: the block at byte s of src becomes the weights from dst[o] on. The functions are plain Python
until kernel() compiles them; each spells out its loops, since numba cannot cache what a factory makes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numba import njit, types

from anytune.gguf.blocks import CODES_FP4, CODES_IQ4
from anytune.simd.blocks import (
    bits,
    byte,
    field,
    half,
    join,
    load_bfloats,
    load_bytes,
    load_floats,
    load_halves,
    load_signed,
    pairs,
    plus,
    scaled,
    signed_byte,
    store,
    uint16,
)
from anytune.simd.half import from_bits
from anytune.simd.registers import LANES

SIGNATURE = types.void(
    types.Array(types.uint8, 1, "C", readonly=True),
    types.intp,
    types.intp,
    types.Array(types.float32, 1, "C"),
    types.intp,
    types.intp,
    types.intp,
    types.intp,
)


def q1_0(src, src_stride, src_offset, dst, dst_stride, dst_offset, rows, blocks):
    for r in range(rows):
        for b in range(blocks):
            s, o = src_offset + r * src_stride + 18 * b, dst_offset + r * dst_stride + 128 * b
            d = half(src, s)
            for i in range(8):
                word = uint16(src, s + 2 + 2 * i)
                store(dst, o + 16 * i, scaled(d, bits(word, 2), 1))


def q2_0(src, src_stride, src_offset, dst, dst_stride, dst_offset, rows, blocks):
    for r in range(rows):
        for b in range(blocks):
            s, o = src_offset + r * src_stride + 18 * b, dst_offset + r * dst_stride + 64 * b
            d = half(src, s)
            for i in range(4):
                at = s + 2 + 4 * i
                word = np.int32(uint16(src, at) | uint16(src, at + 2) << 16)
                store(dst, o + 16 * i, scaled(d, pairs(word), 1))


def q4_0(src, src_stride, src_offset, dst, dst_stride, dst_offset, rows, blocks):
    for r in range(rows):
        for b in range(blocks):
            s, o = src_offset + r * src_stride + 18 * b, dst_offset + r * dst_stride + 32 * b
            d, q = half(src, s), load_bytes(src, s + 2)
            store(dst, o, scaled(d, field(q, 0, 15), 8))
            store(dst, o + 16, scaled(d, field(q, 4, 15), 8))


def q4_1(src, src_stride, src_offset, dst, dst_stride, dst_offset, rows, blocks):
    for r in range(rows):
        for b in range(blocks):
            s, o = src_offset + r * src_stride + 20 * b, dst_offset + r * dst_stride + 32 * b
            d, m, q = half(src, s), half(src, s + 2), load_bytes(src, s + 4)
            store(dst, o, plus(scaled(d, field(q, 0, 15), 0), m))
            store(dst, o + 16, plus(scaled(d, field(q, 4, 15), 0), m))


def q5_0(src, src_stride, src_offset, dst, dst_stride, dst_offset, rows, blocks):
    for r in range(rows):
        for b in range(blocks):
            s, o = src_offset + r * src_stride + 22 * b, dst_offset + r * dst_stride + 32 * b
            d, q = half(src, s), load_bytes(src, s + 6)
            first, last = uint16(src, s + 2), uint16(src, s + 4)
            store(dst, o, scaled(d, join(field(q, 0, 15), bits(first, 16), 0), 16))
            store(dst, o + 16, scaled(d, join(field(q, 4, 15), bits(last, 16), 0), 16))


def q5_1(src, src_stride, src_offset, dst, dst_stride, dst_offset, rows, blocks):
    for r in range(rows):
        for b in range(blocks):
            s, o = src_offset + r * src_stride + 24 * b, dst_offset + r * dst_stride + 32 * b
            d, m, q = half(src, s), half(src, s + 2), load_bytes(src, s + 8)
            first, last = uint16(src, s + 4), uint16(src, s + 6)
            store(dst, o, plus(scaled(d, join(field(q, 0, 15), bits(first, 16), 0), 0), m))
            store(dst, o + 16, plus(scaled(d, join(field(q, 4, 15), bits(last, 16), 0), 0), m))


def q8_0(src, src_stride, src_offset, dst, dst_stride, dst_offset, rows, blocks):
    for r in range(rows):
        for b in range(blocks):
            s, o = src_offset + r * src_stride + 34 * b, dst_offset + r * dst_stride + 32 * b
            d = half(src, s)
            store(dst, o, scaled(d, load_signed(src, s + 2), 0))
            store(dst, o + 16, scaled(d, load_signed(src, s + 18), 0))


def q2_k(src, src_stride, src_offset, dst, dst_stride, dst_offset, rows, blocks):
    for r in range(rows):
        for b in range(blocks):
            s, o = src_offset + r * src_stride + 84 * b, dst_offset + r * dst_stride + 256 * b
            d, least = half(src, s + 80), half(src, s + 82)
            for i in range(16):
                scale = byte(src, s + i)
                q = field(load_bytes(src, s + 16 + 32 * (i >> 3) + 16 * (i & 1)), (i >> 1 & 3) * 2, 3)
                y, m = d * np.float32(scale & 15), -(least * np.float32(scale >> 4))
                store(dst, o + 16 * i, plus(scaled(y, q, 0), m))


def q3_k(src, src_stride, src_offset, dst, dst_stride, dst_offset, rows, blocks):
    for r in range(rows):
        for b in range(blocks):
            s, o = src_offset + r * src_stride + 110 * b, dst_offset + r * dst_stride + 256 * b
            d = half(src, s + 108)
            for i in range(16):
                low = byte(src, s + 96 + (i & 7)) >> (i >> 3) * 4 & 15
                high = byte(src, s + 104 + (i & 3)) >> (i >> 2) * 2 & 3
                scale = d * np.float32((low | high << 4) - 32)
                q = field(load_bytes(src, s + 32 + 32 * (i >> 3) + 16 * (i & 1)), (i >> 1 & 3) * 2, 3)
                top = field(load_bytes(src, s + 16 * (i & 1)), i >> 1, 1)
                store(dst, o + 16 * i, scaled(scale, join(q, top, 2), 4))


@njit(inline="always")
def _six_bits(src, s, i):
    """The i-th of eight scales and of eight minimums, packed into the twelve bytes at s."""
    if i < 4:
        return byte(src, s + i) & 63, byte(src, s + 4 + i) & 63
    tail = byte(src, s + 4 + i)
    return tail & 15 | byte(src, s + i - 4) >> 6 << 4, tail >> 4 | byte(src, s + i) >> 6 << 4


def q4_k(src, src_stride, src_offset, dst, dst_stride, dst_offset, rows, blocks):
    for r in range(rows):
        for b in range(blocks):
            s, o = src_offset + r * src_stride + 144 * b, dst_offset + r * dst_stride + 256 * b
            d, least = half(src, s), half(src, s + 2)
            for i in range(8):
                scale, low = _six_bits(src, s + 4, i)
                y, m = d * np.float32(scale), -(least * np.float32(low))
                for j in range(0, 32, 16):
                    q = field(load_bytes(src, s + 16 + 32 * (i >> 1) + j), (i & 1) * 4, 15)
                    store(dst, o + 32 * i + j, plus(scaled(y, q, 0), m))


def q5_k(src, src_stride, src_offset, dst, dst_stride, dst_offset, rows, blocks):
    for r in range(rows):
        for b in range(blocks):
            s, o = src_offset + r * src_stride + 176 * b, dst_offset + r * dst_stride + 256 * b
            d, least = half(src, s), half(src, s + 2)
            for i in range(8):
                scale, low = _six_bits(src, s + 4, i)
                y, m = d * np.float32(scale), -(least * np.float32(low))
                for j in range(0, 32, 16):
                    q = field(load_bytes(src, s + 48 + 32 * (i >> 1) + j), (i & 1) * 4, 15)
                    top = field(load_bytes(src, s + 16 + j), i, 1)
                    store(dst, o + 32 * i + j, plus(scaled(y, join(q, top, 4), 0), m))


def q6_k(src, src_stride, src_offset, dst, dst_stride, dst_offset, rows, blocks):
    for r in range(rows):
        for b in range(blocks):
            s, o = src_offset + r * src_stride + 210 * b, dst_offset + r * dst_stride + 256 * b
            d = half(src, s + 208)
            for i in range(16):
                scale = d * np.float32(signed_byte(src, s + 192 + i))
                q = field(load_bytes(src, s + 64 * (i >> 3) + 16 * (i & 3)), (i >> 2 & 1) * 4, 15)
                top = field(load_bytes(src, s + 128 + 32 * (i >> 3) + 16 * (i & 1)), (i >> 1 & 3) * 2, 3)
                store(dst, o + 16 * i, scaled(scale, join(q, top, 4), 32))


def iq4_nl(src, src_stride, src_offset, dst, dst_stride, dst_offset, rows, blocks):
    for r in range(rows):
        for b in range(blocks):
            s, o = src_offset + r * src_stride + 18 * b, dst_offset + r * dst_stride + 32 * b
            d = half(src, s)
            for j in range(16):
                q = byte(src, s + 2 + j)
                dst[o + j], dst[o + 16 + j] = d * CODES_IQ4[q & 15], d * CODES_IQ4[q >> 4]


def iq4_xs(src, src_stride, src_offset, dst, dst_stride, dst_offset, rows, blocks):
    for r in range(rows):
        for b in range(blocks):
            s, o = src_offset + r * src_stride + 136 * b, dst_offset + r * dst_stride + 256 * b
            d = half(src, s)
            for i in range(8):
                low = byte(src, s + 4 + (i >> 1)) >> (i & 1) * 4 & 15
                high = byte(src, s + 2 + (i >> 2)) >> (i & 3) * 2 & 3
                scale = d * np.float32((low | high << 4) - 32)
                for j in range(16):
                    q = byte(src, s + 8 + 16 * i + j)
                    dst[o + 32 * i + j] = scale * CODES_IQ4[q & 15]
                    dst[o + 32 * i + 16 + j] = scale * CODES_IQ4[q >> 4]


def mxfp4(src, src_stride, src_offset, dst, dst_stride, dst_offset, rows, blocks):
    for r in range(rows):
        for b in range(blocks):
            s, o = src_offset + r * src_stride + 17 * b, dst_offset + r * dst_stride + 32 * b
            e = byte(src, s)
            d = from_bits(np.int32(0x00200000 << e if e < 2 else (e - 1) << 23))
            for j in range(16):
                q = byte(src, s + 1 + j)
                dst[o + j], dst[o + 16 + j] = d * CODES_FP4[q & 15], d * CODES_FP4[q >> 4]


def f16(src, src_stride, src_offset, dst, dst_stride, dst_offset, rows, blocks):
    for r in range(rows):
        s, o = src_offset + r * src_stride, dst_offset + r * dst_stride
        for b in range(0, blocks - LANES + 1, LANES):
            store(dst, o + b, load_halves(src, s + 2 * b))
        for b in range(blocks // LANES * LANES, blocks):
            dst[o + b] = half(src, s + 2 * b)


def bf16(src, src_stride, src_offset, dst, dst_stride, dst_offset, rows, blocks):
    for r in range(rows):
        s, o = src_offset + r * src_stride, dst_offset + r * dst_stride
        for b in range(0, blocks - LANES + 1, LANES):
            store(dst, o + b, load_bfloats(src, s + 2 * b))
        for b in range(blocks // LANES * LANES, blocks):
            dst[o + b] = from_bits(np.int32(byte(src, s + 2 * b) << 16 | byte(src, s + 2 * b + 1) << 24))


def f32(src, src_stride, src_offset, dst, dst_stride, dst_offset, rows, blocks):
    for r in range(rows):
        s, o = src_offset + r * src_stride, dst_offset + r * dst_stride
        for b in range(0, blocks - LANES + 1, LANES):
            store(dst, o + b, load_floats(src, s + 4 * b))
        for b in range(blocks // LANES * LANES, blocks):
            word = uint16(src, s + 4 * b) | uint16(src, s + 4 * b + 2) << 16
            dst[o + b] = from_bits(np.int32(word))


FUNCTIONS = {
    function.__name__.upper(): function
    for function in (q1_0, q2_0, q4_0, q4_1, q5_0, q5_1, q8_0, q2_k, q3_k, q4_k, q5_k, q6_k, iq4_nl, iq4_xs, mxfp4)
    + (f16, bf16, f32)
}


def kernel(name: str) -> Callable | None:
    """The compiled kernel of format `name`, or None if it has none (0.3-1 s the first time)."""
    function = FUNCTIONS.get(name)
    if function is None:  # the code books, which few models need
        from anytune.gguf import kernels_iq

        function = kernels_iq.FUNCTIONS.get(name)
    if function is None:
        return None
    try:
        return njit(SIGNATURE, nogil=True, cache=True)(function)
    except RuntimeError:  # no folder in which the compiled code could be kept
        return njit(SIGNATURE, nogil=True)(function)
