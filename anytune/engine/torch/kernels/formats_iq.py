"""The formats with code books (IQ1, IQ2, IQ3): an octet is one entry of eight signed bytes, or two of four.

A format is two functions, scales and octet: see formats_32.py. Here an octet's number `g` goes from 0 to 31, and
`book` points to the entries as bytes. Layouts: see anytune/gguf/blocks_iq.py.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .octets import I32, bit_bytes, byte, half, pair, short, signed_floats, spread


@triton.jit
def entry(book, index):
    """Entry `index` [C, R] of eight: float32 [C, R, 8]."""
    return signed_floats(pair(book + index * 8, 8))


@triton.jit
def entries(book, first, second):
    """Two entries of four, side by side."""
    first, second = tl.load((book + first * 4).to(I32)), tl.load((book + second * 4).to(I32))
    return signed_floats(tl.join(first, second))


@triton.jit
def signed(q, sign):
    """q [C, R, 8], negative where the octet's byte of sign bits has a one."""
    return (q.to(tl.int32, bitcast=True) ^ spread(bit_bytes(sign)) << 31).to(tl.float32, bitcast=True)


@triton.jit
def even_signs(b):
    """Seven sign bits and an eighth that makes their number even."""
    odd = b ^ b >> 4
    odd = odd ^ odd >> 2
    return b | (odd ^ odd >> 1) << 7 & 128


@triton.jit
def packed(p):
    """A word of four times seven sign bits and a 4-bit scale."""
    return short(p) | short(p + 2) << 16


@triton.jit
def nibble(p, i):
    return byte(p + i // 2) >> i % 2 * 4 & 15


@triton.jit
def scales_iq2_xxs(block, g):
    p = block + (6 + g // 4 * 8)
    scale = half(block) * (0.5 + (packed(p) >> 28 & 15).to(tl.float32)) * 0.25
    return scale, tl.zeros_like(scale)


@triton.jit
def octet_iq2_xxs(block, g, book, WORD: tl.constexpr):
    p = block + (2 + g // 4 * 8)
    return signed(entry(book, byte(p + g % 4)), even_signs(packed(p + 4) >> g % 4 * 7 & 127))


@triton.jit
def scales_iq2_xs(block, g):
    scale = half(block) * (0.5 + nibble(block + 66, g // 2).to(tl.float32)) * 0.25
    return scale, tl.zeros_like(scale)


@triton.jit
def octet_iq2_xs(block, g, book, WORD: tl.constexpr):
    w = short(block + (2 + g * 2))
    return signed(entry(book, w & 511), even_signs(w >> 9))


@triton.jit
def scales_iq2_s(block, g):
    scale = half(block) * (0.5 + nibble(block + 74, g // 2).to(tl.float32)) * 0.25
    return scale, tl.zeros_like(scale)


@triton.jit
def octet_iq2_s(block, g, book, WORD: tl.constexpr):
    high = byte(block + (66 + g // 4)) >> g % 4 * 2 & 3
    return signed(entry(book, byte(block + (2 + g)) | high << 8), byte(block + (34 + g)))


@triton.jit
def scales_iq3_xxs(block, g):
    word = packed(block + (66 + g // 4 * 4))
    scale = half(block) * (0.5 + (word >> 28 & 15).to(tl.float32)) * 0.5
    return scale, tl.zeros_like(scale)


@triton.jit
def octet_iq3_xxs(block, g, book, WORD: tl.constexpr):
    index, word = short(block + (2 + g * 2)), packed(block + (66 + g // 4 * 4))
    return signed(entries(book, index & 255, index >> 8), even_signs(word >> g % 4 * 7 & 127))


@triton.jit
def scales_iq3_s(block, g):
    scale = half(block) * (2 * nibble(block + 106, g // 4) + 1).to(tl.float32)
    return scale, tl.zeros_like(scale)


@triton.jit
def octet_iq3_s(block, g, book, WORD: tl.constexpr):
    index, high = short(block + (2 + g * 2)), byte(block + (66 + g // 4)) >> g % 4 * 2
    first, second = index & 255 | (high & 1) << 8, index >> 8 | (high & 2) << 7
    return signed(entries(book, first, second), byte(block + (74 + g)))


@triton.jit
def scales_iq1_s(block, g):
    scale = half(block) * (2 * (short(block + (34 + g // 4 * 2)) >> 12 & 7) + 1).to(tl.float32)
    return scale, tl.zeros_like(scale)


@triton.jit
def octet_iq1_s(block, g, book, WORD: tl.constexpr):
    high = short(block + (34 + g // 4 * 2))
    delta = tl.where(high >> 15 != 0, -0.125, 0.125)
    return entry(book, byte(block + (2 + g)) | (high >> g % 4 * 3 & 7) << 8) + delta[:, :, None]


@triton.jit
def scales_iq1_m(block, g):
    """The block's float16 scale is in the top four bits of four words, whose other bits are scales."""
    d = (
        short(block + 48) >> 12
        | short(block + 50) >> 8 & 0xF0
        | short(block + 52) >> 4 & 0xF00
        | short(block + 54) & 0xF000
    )
    i = g // 2
    scale = d.to(tl.uint16).to(tl.float16, bitcast=True).to(tl.float32)
    scale = scale * (2 * (short(block + (48 + i // 4 * 2)) >> i % 4 * 3 & 7) + 1).to(tl.float32)
    return scale, tl.zeros_like(scale)


@triton.jit
def octet_iq1_m(block, g, book, WORD: tl.constexpr):
    high = nibble(block + 32, g)
    delta = tl.where(high >> 3 != 0, -0.125, 0.125)
    return entry(book, byte(block + g) | (high & 7) << 8) + delta[:, :, None]
