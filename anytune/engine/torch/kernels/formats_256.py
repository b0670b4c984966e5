"""The formats with blocks of 256 weights, but for those with code books. Layouts: see anytune/gguf/blocks.py.

A format is two functions, scales and octet: see formats_32.py. Here an octet's number `g` goes from 0 to 31.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .octets import IQ4_HIGH, IQ4_LOW, bits, byte, coded, crumbs, floats, half, nibbles, short


@triton.jit
def crumbs_32(block, g, AT: tl.constexpr, WORD: tl.constexpr):
    """Two runs of 32 bytes with four fields of two bits each."""
    return crumbs(block + (AT + g // 16 * 32 + g % 4 * 8), g // 4 % 4 * 2, WORD)


@triton.jit
def bits_32(block, g, AT: tl.constexpr, WORD: tl.constexpr):
    """32 bytes of eight bits."""
    return bits(block + (AT + g % 4 * 8), g // 4, WORD)


@triton.jit
def nibbles_32(block, g, AT: tl.constexpr, WORD: tl.constexpr):
    """Four runs of 32 bytes of two nibbles."""
    return nibbles(block + (AT + g // 8 * 32 + g % 4 * 8), g // 4 % 2 * 4, WORD)


@triton.jit
def scales_q2_k(block, g):
    code = byte(block + g // 2)
    return half(block + 80) * (code & 15).to(tl.float32), half(block + 82) * (code >> 4).to(tl.float32)


@triton.jit
def octet_q2_k(block, g, book, WORD: tl.constexpr):
    return floats(crumbs_32(block, g, 16, WORD), 0)


@triton.jit
def scales_q3_k(block, g):
    i = g // 2
    code = byte(block + (96 + i % 8)) >> i // 8 * 4 & 15 | (byte(block + (104 + i % 4)) >> i // 4 * 2 & 3) << 4
    scale = half(block + 108) * (code.to(tl.float32) - 32)
    return scale, tl.zeros_like(scale)


@triton.jit
def octet_q3_k(block, g, book, WORD: tl.constexpr):
    return floats(crumbs_32(block, g, 32, WORD) | bits_32(block, g, 0, WORD) << 2, 4)


@triton.jit
def scales_six_bits(block, g):
    """Q4_K and Q5_K: see blocks._six_bit_scales."""
    i = g // 4
    low, high, tail = byte(block + (4 + i % 4)), byte(block + (8 + i % 4)), byte(block + (12 + i % 4))
    scale = tl.where(i < 4, low & 63, tail & 15 | low >> 6 << 4)
    least = tl.where(i < 4, high & 63, tail >> 4 | high >> 6 << 4)
    return half(block) * scale.to(tl.float32), half(block + 2) * least.to(tl.float32)


@triton.jit
def octet_q4_k(block, g, book, WORD: tl.constexpr):
    return floats(nibbles_32(block, g, 16, WORD), 0)


@triton.jit
def octet_q5_k(block, g, book, WORD: tl.constexpr):
    return floats(nibbles_32(block, g, 48, WORD) | bits_32(block, g, 16, WORD) << 4, 0)


@triton.jit
def scales_q6_k(block, g):
    scale = half(block + 208) * byte(block + (192 + g // 2)).to(tl.int8).to(tl.float32)
    return scale, tl.zeros_like(scale)


@triton.jit
def octet_q6_k(block, g, book, WORD: tl.constexpr):
    low = nibbles(block + (g // 16 * 64 + g % 8 * 8), g // 8 % 2 * 4, WORD)
    return floats(low | crumbs_32(block, g, 128, WORD) << 4, 32)


@triton.jit
def scales_iq4_xs(block, g):
    i = g // 4
    code = byte(block + (4 + i // 2)) >> i % 2 * 4 & 15 | (byte(block + (2 + i // 4)) >> i % 4 * 2 & 3) << 4
    scale = half(block) * (code.to(tl.float32) - 32)
    return scale, tl.zeros_like(scale)


@triton.jit
def octet_iq4_xs(block, g, book, WORD: tl.constexpr):
    return coded(nibbles(block + (8 + g // 4 * 16 + g % 2 * 8), g // 2 % 2 * 4, WORD), IQ4_LOW, IQ4_HIGH)


@triton.jit
def scales_tq1_0(block, g):
    scale = half(block + 52)
    return scale, tl.zeros_like(scale)


@triton.jit
def power_of_three(digit):
    return tl.where(digit < 2, 1 + digit * 2, tl.where(digit < 4, digit * 18 - 27, 81))


@triton.jit
def octet_tq1_0(block, g, book, WORD: tl.constexpr):
    """Base-3 digits, highest first, the byte a fraction of 256: five of 32 bytes, five of 16, four of 4 bytes."""
    first, last = g < 20, g >= 30  # the last two octets take two digits each, of the same four bytes
    at = tl.where(first, g % 4 * 8, tl.where(last, 48, 32 + g % 2 * 8))
    digit = tl.where(first, g // 4, tl.where(last, g * 2 - 60, (g - 20) // 2))
    low = short(block + at) | short(block + (at + 2)) << 16
    at = tl.where(last, at, at + 4)
    high = short(block + at) | short(block + (at + 2)) << 16
    powers = tl.join(power_of_three(digit), power_of_three(tl.where(last, digit + 1, digit)))
    w = tl.join(low, high)
    even, odd = w & 0x00FF00FF, w >> 8 & 0x00FF00FF  # two bytes at a time, with room above each
    even = (even * powers & 0x00FF00FF) * 3 >> 8 & 0x00030003
    odd = (odd * powers & 0x00FF00FF) * 3 & 0x03000300
    return floats(even | odd, 1)


@triton.jit
def scales_tq2_0(block, g):
    scale = half(block + 64)
    return scale, tl.zeros_like(scale)


@triton.jit
def octet_tq2_0(block, g, book, WORD: tl.constexpr):
    return floats(crumbs_32(block, g, 0, WORD), 1)
