"""Plain numbers, and the formats with blocks of 32, 64 and 128 weights. Layouts: see anytune/gguf/blocks.py.

A format is two functions of `block`, byte pointers [C, R] to each octet's block, and `g`, int32 [C, 1], the octet's
number in its block: scales(block, g) -> (scale, least), float32 [C, R] each, and octet(block, g, book, WORD) -> q,
float32 [C, R, 8]; the weights are scale * q - least, rounded after each step.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .octets import (
    F16,
    F32,
    FP4_HIGH,
    FP4_LOW,
    IQ4_HIGH,
    IQ4_LOW,
    U16,
    bit_bytes,
    byte,
    coded,
    crumb_bytes,
    floats,
    half,
    nibbles,
    pair,
    short,
    signed_floats,
)


@triton.jit
def scales_one(block, g):
    """Plain numbers, whose "block" is the octet itself."""
    return tl.full(block.shape, 1.0, tl.float32), tl.zeros(block.shape, tl.float32)


@triton.jit
def plain(block, TO: tl.constexpr):
    return tl.load(block.to(TO)[:, :, None] + tl.arange(0, 8)[None, None, :])


@triton.jit
def octet_f32(block, g, book, WORD: tl.constexpr):
    return plain(block, F32)


@triton.jit
def octet_f16(block, g, book, WORD: tl.constexpr):
    return plain(block, F16).to(tl.float32)


@triton.jit
def octet_bf16(block, g, book, WORD: tl.constexpr):
    return (plain(block, U16).to(tl.int32) << 16).to(tl.float32, bitcast=True)


@triton.jit
def scales_half(block, g):
    scale = half(block)
    return scale, tl.zeros_like(scale)


@triton.jit
def scales_half_plus(block, g):
    return half(block), -half(block + 2)


@triton.jit
def octet_q1_0(block, g, book, WORD: tl.constexpr):
    return floats(bit_bytes(byte(block + (2 + g))) << 1, 1)


@triton.jit
def octet_q2_0(block, g, book, WORD: tl.constexpr):
    return floats(crumb_bytes(short(block + (2 + g * 2))), 1)


@triton.jit
def nibbles_32(block, g, AT: tl.constexpr, WORD: tl.constexpr):
    """Sixteen bytes of two nibbles; the low ones come first."""
    return nibbles(block + (AT + g % 2 * 8), g // 2 * 4, WORD)


@triton.jit
def octet_q4_0(block, g, book, WORD: tl.constexpr):
    return floats(nibbles_32(block, g, 2, WORD), 8)


@triton.jit
def octet_q4_1(block, g, book, WORD: tl.constexpr):
    return floats(nibbles_32(block, g, 4, WORD), 0)


@triton.jit
def octet_q5_0(block, g, book, WORD: tl.constexpr):
    return floats(nibbles_32(block, g, 6, WORD) | bit_bytes(byte(block + (2 + g))) << 4, 16)


@triton.jit
def octet_q5_1(block, g, book, WORD: tl.constexpr):
    return floats(nibbles_32(block, g, 8, WORD) | bit_bytes(byte(block + (4 + g))) << 4, 0)


@triton.jit
def octet_q8_0(block, g, book, WORD: tl.constexpr):
    return signed_floats(pair(block + (2 + g * 8), WORD))


@triton.jit
def octet_iq4_nl(block, g, book, WORD: tl.constexpr):
    return coded(nibbles_32(block, g, 2, WORD), IQ4_LOW, IQ4_HIGH)


@triton.jit
def scales_mxfp4(block, g):
    e = byte(block)  # a power of two (e8m0), halved since the codes are doubled
    scale = tl.where(e < 2, (e + 1) << 21, (e - 1) << 23).to(tl.float32, bitcast=True)
    return scale, tl.zeros_like(scale)


@triton.jit
def octet_mxfp4(block, g, book, WORD: tl.constexpr):
    return coded(nibbles_32(block, g, 1, WORD), FP4_LOW, FP4_HIGH)


@triton.jit
def scales_nvfp4(block, g):
    code = byte(block + g // 2)  # e4m3 without a sign, halved since the codes are doubled
    exponent, mantissa = code >> 3 & 15, (code & 7).to(tl.float32)
    normal = ((exponent + 119) << 23).to(tl.float32, bitcast=True) * (1 + mantissa * 0.125)
    scale = tl.where(exponent == 0, mantissa * 0.0009765625, normal)
    scale = tl.where(code == 0x7F, 0.0, scale)  # the code for NaN
    return scale, tl.zeros_like(scale)


@triton.jit
def octet_nvfp4(block, g, book, WORD: tl.constexpr):
    return coded(nibbles(block + (4 + g // 2 * 8), g % 2 * 4, WORD), FP4_LOW, FP4_HIGH)
