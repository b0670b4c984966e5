"""Reading eight weights at a time ("an octet"), which share a scale in every GGUF format: the parts of all formats.

A thread owns an octet in its registers: a few narrow loads (most blocks' odd sizes allow no wide ones), integer
arithmetic on four bytes a word, and eight floats that leave as one 16-byte store of bf16. Pointers are to bytes.
WORD is how many bytes a load may take at once, since pointer, row and block size are all multiples of it.
"""

from __future__ import annotations

import numpy as np
import triton
import triton.language as tl

from anytune.gguf.blocks import CODES_FP4, CODES_IQ4

U16, I32, I64, F16, F32 = (
    tl.constexpr(tl.pointer_type(kind)) for kind in (tl.uint16, tl.int32, tl.int64, tl.float16, tl.float32)
)


def _two_words(codes: np.ndarray) -> list[tl.constexpr]:
    """Sixteen numbers from -128 to 127, each plus 128 as a byte, in two words of eight bytes."""
    return [tl.constexpr(word) for word in (codes + 128).astype(np.uint8).view(np.int64).tolist()]


IQ4_LOW, IQ4_HIGH = _two_words(CODES_IQ4)  # shifting a constant is cheaper than loading from a table
FP4_LOW, FP4_HIGH = _two_words(CODES_FP4)


@triton.jit
def byte(p):
    return tl.load(p).to(tl.int32)


@triton.jit
def short(p):
    """An unsigned 16-bit word."""
    return tl.load(p.to(U16)).to(tl.int32)


@triton.jit
def half(p):
    return tl.load(p.to(F16)).to(tl.float32)


@triton.jit
def pair(p, WORD: tl.constexpr):
    """Eight bytes as two little-endian words: pointers [C, R] to int32 [C, R, 2]."""
    if WORD == 8:
        v = tl.load(p.to(I64))
        low, high = v.to(tl.int32), (v >> 32).to(tl.int32)
    elif WORD == 4:
        low, high = tl.load(p.to(I32)), tl.load(p.to(I32) + 1)
    elif WORD == 2:
        low, high = short(p) | short(p + 2) << 16, short(p + 4) | short(p + 6) << 16
    else:
        low = byte(p) | byte(p + 1) << 8 | byte(p + 2) << 16 | byte(p + 3) << 24
        high = byte(p + 4) | byte(p + 5) << 8 | byte(p + 6) << 16 | byte(p + 7) << 24
    return tl.join(low, high)


@triton.jit
def spread(w):
    """The bytes of words, from 0 to 255: int32 [C, R, 2] to [C, R, 8]."""
    even, odd = tl.join(w & 255, w >> 16 & 255), tl.join(w >> 8 & 255, w >> 24 & 255)
    return tl.reshape(tl.join(even, odd), (w.shape[0], w.shape[1], 8))


@triton.jit
def low_byte(w, less: tl.constexpr):
    """The lowest byte of words, less a constant, as exact float32.

    It becomes the low bits of 2**23: a logical operation and a subtraction, where a conversion of integers would run
    at a fraction of their rate. An instruction takes one constant only; so 2**23 is to stay in a register, which it
    does as long as the compiler cannot know that a flat grid's third number is zero.
    """
    return (w & 255 | (0x4B000000 - tl.program_id(2))).to(tl.float32, bitcast=True) - (8388608.0 + less)


@triton.jit
def second_byte(w, less: tl.constexpr):
    """As low_byte for the byte above it: in 2**15, its bits are where they have to without a shift."""
    return (w & 0xFF00 | (0x47000000 - tl.program_id(2))).to(tl.float32, bitcast=True) - (32768.0 + less)


@triton.jit
def floats(w, less: tl.constexpr):
    """The unsigned bytes of words [C, R, 2], less a constant: float32 [C, R, 8]."""
    high = w >> 16
    even, odd = tl.join(low_byte(w, less), low_byte(high, less)), tl.join(second_byte(w, less), second_byte(high, less))
    return tl.reshape(tl.join(even, odd), (w.shape[0], w.shape[1], 8))


@triton.jit
def signed_floats(w):
    """The signed bytes of words [C, R, 2]: float32 [C, R, 8]."""
    return floats(w ^ -0x7F7F7F80, 128)  # 0x80 in each byte: -128 becomes 0


@triton.jit
def bit_bytes(b):
    """Eight bits to eight bytes of 0 or 1: int32 [C, R] to [C, R, 2]."""
    four = tl.join(b & 15, b >> 4 & 15)
    return four * 0x204081 & 0x01010101  # four copies, seven bits apart: bit j falls on byte j


@triton.jit
def crumb_bytes(s):
    """Eight fields of two bits to eight bytes: int32 [C, R] to [C, R, 2]."""
    four = tl.join(s & 255, s >> 8 & 255)
    four = (four | four << 12) & 0x000F000F
    return (four | four << 6) & 0x03030303


@triton.jit
def nibbles(p, shift, WORD: tl.constexpr):
    return pair(p, WORD) >> shift[:, :, None] & 0x0F0F0F0F


@triton.jit
def crumbs(p, shift, WORD: tl.constexpr):
    return pair(p, WORD) >> shift[:, :, None] & 0x03030303


@triton.jit
def bits(p, shift, WORD: tl.constexpr):
    return pair(p, WORD) >> shift[:, :, None] & 0x01010101


@triton.jit
def coded(w, LOW: tl.constexpr, HIGH: tl.constexpr):
    """The numbers that four-bit codes stand for: words [C, R, 2] to float32 [C, R, 8]."""
    code = spread(w)
    table = tl.where(code < 8, tl.full(code.shape, LOW, tl.int64), tl.full(code.shape, HIGH, tl.int64))
    return low_byte((table >> ((code & 7) * 8).to(tl.int64)).to(tl.int32), 128)
