"""nearest.py compiled: one function a format, a block in two or more vectors of sixteen.

    kernel(name)(x, dst, blocks)

x: float32, flat, `blocks` blocks; dst: uint8, flat. Nothing is checked; the bytes are those of nearest.py.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numba import njit, types

from anytune.gguf.encode.nearest import MIDDLES
from anytune.simd import vectors_numba  # noqa: F401 (it adds arithmetic on lanes)
from anytune.simd.half import bits_of_half, from_bits
from anytune.simd.integers import (
    at_most,
    bit,
    both,
    either,
    every,
    exceeds,
    first,
    floats_at,
    highest,
    left,
    lowest,
    plus,
    put_bytes,
    put_word,
    put_words,
    real,
    right,
    times,
    whole,
    words_of,
)
from anytune.simd.registers import LANES
from anytune.simd.vectors import least, most, size, where_less

SIGNATURE = types.void(types.Array(types.float32, 1, "C", readonly=True), types.Array(types.uint8, 1, "C"), types.intp)
HUGE = np.float32(1e9)  # what scaled weights never reach, unless the scale's inverse is infinite


@njit
def _word(value):
    """The bits of one number as float16."""
    return first(bits_of_half(every(value)))


@njit
def _inverse(d):
    return np.float32(0) if d == 0 else np.float32(1) / d


@njit
def _peak(x, at, a, b):
    """The value of the largest size among 32, with its sign; of two the first."""
    high, low = highest(most(a, b)), -lowest(least(a, b))
    if high > low:
        return high
    if low > high:
        return -low
    for i in range(at, at + 32):
        if abs(x[i]) == high:
            return x[i] + np.float32(0)  # never a negative zero, as in llama.cpp
    return high


@njit
def _cut(values):
    """Towards zero; what is too large (the inverse of a scale below float32's range) as C does on most machines."""
    return whole(where_less(size(values), HUGE, values, -2147483648.0))


@njit
def _away(values):
    """To the nearest integer, halves away from zero."""
    a = where_less(size(values), HUGE, size(values), 0.0)
    down = whole(a)
    rounded = real(down)
    rounded = where_less(a - rounded, 0.5, rounded, rounded + 1.0)
    return whole(where_less(values, 0.0, 0.0 - rounded, rounded))


def q1_0(x, dst, blocks):
    for k in range(blocks):
        i, o = 128 * k, 18 * k
        total = np.float32(0)
        for j in range(i, i + 128):
            total += abs(x[j])
        put_word(dst, o, _word(total / np.float32(128)))
        for j in range(8):
            put_word(dst, o + 2 + 2 * j, ~bit(exceeds(0.0 - floats_at(x, i + 16 * j), 0), 0))


def q2_0(x, dst, blocks):
    for k in range(blocks):
        i, o = 64 * k, 18 * k
        peak = np.float32(0)
        for j in range(i, i + 64):
            peak = max(peak, abs(x[j]))
        inverse = _inverse(peak)
        put_word(dst, o, _word(peak))
        for j in range(16):
            packed = 0
            for part in range(4):
                scaled = x[i + 4 * j + part] * inverse
                digit = 2 if 0.5 <= scaled < HUGE else 1 if -0.5 < scaled < 0.5 else 0
                packed |= digit << 2 * part
            dst[o + 2 + j] = packed


def q4_0(x, dst, blocks):
    for k in range(blocks):
        i, o = 32 * k, 18 * k
        a, b = floats_at(x, i), floats_at(x, i + 16)
        d = _peak(x, i, a, b) / np.float32(-8)
        inverse = _inverse(d)
        put_word(dst, o, _word(d))
        low, high = at_most(_cut(a * inverse + 8.5), 15), at_most(_cut(b * inverse + 8.5), 15)
        put_bytes(dst, o + 2, either(low, left(high, 4)))


def q4_1(x, dst, blocks):
    for k in range(blocks):
        i, o = 32 * k, 20 * k
        a, b = floats_at(x, i), floats_at(x, i + 16)
        base = lowest(least(a, b))
        d = (highest(most(a, b)) - base) / np.float32(15)
        inverse = _inverse(d)
        put_word(dst, o, _word(d))
        put_word(dst, o + 2, _word(base))
        low, high = at_most(_cut((a - base) * inverse + 0.5), 15), at_most(_cut((b - base) * inverse + 0.5), 15)
        put_bytes(dst, o + 4, either(low, left(high, 4)))


def q5_0(x, dst, blocks):
    for k in range(blocks):
        i, o = 32 * k, 22 * k
        a, b = floats_at(x, i), floats_at(x, i + 16)
        d = _peak(x, i, a, b) / np.float32(-16)
        inverse = _inverse(d)
        put_word(dst, o, _word(d))
        low, high = at_most(_cut(a * inverse + 16.5), 31), at_most(_cut(b * inverse + 16.5), 31)
        put_word(dst, o + 2, bit(low, 4))
        put_word(dst, o + 4, bit(high, 4))
        put_bytes(dst, o + 6, either(both(low, 15), left(high, 4)))


def q5_1(x, dst, blocks):
    for k in range(blocks):
        i, o = 32 * k, 24 * k
        a, b = floats_at(x, i), floats_at(x, i + 16)
        base = lowest(least(a, b))
        d = (highest(most(a, b)) - base) / np.float32(31)
        inverse = _inverse(d)
        put_word(dst, o, _word(d))
        put_word(dst, o + 2, _word(base))
        low, high = at_most(_cut((a - base) * inverse + 0.5), 31), at_most(_cut((b - base) * inverse + 0.5), 31)
        put_word(dst, o + 4, bit(low, 4))
        put_word(dst, o + 6, bit(high, 4))
        put_bytes(dst, o + 8, either(both(low, 15), left(high, 4)))


def q8_0(x, dst, blocks):
    for k in range(blocks):
        i, o = 32 * k, 34 * k
        a, b = floats_at(x, i), floats_at(x, i + 16)
        d = highest(most(size(a), size(b))) / np.float32(127)
        inverse = _inverse(d)
        put_word(dst, o, _word(d))
        put_bytes(dst, o + 2, _away(a * inverse))
        put_bytes(dst, o + 18, _away(b * inverse))


@njit
def _largest(x, at):
    """The largest size among 256."""
    found = size(floats_at(x, at))
    for i in range(at + 16, at + 256, 16):
        found = most(found, size(floats_at(x, i)))
    return highest(found)


@njit
def _trit(x, at, inverse):
    """0, 1 or 2 for each of sixteen weights."""
    return plus(_away(floats_at(x, at) * inverse), 1)


@njit
def _fraction(number):
    """A number below 243 as a fraction of 256, rounded up; the quotient in multiplications that are exact there."""
    return right(times(plus(left(number, 8), 242), 17261), 22)


def tq1_0(x, dst, blocks):
    for k in range(blocks):
        i, o = 256 * k, 54 * k
        d = _largest(x, i)
        inverse = _inverse(d)
        for j in range(0, 48, 16):
            start, group = (i + j, 32) if j < 32 else (i + 160, 16)
            number = _trit(x, start, inverse)
            for digit in range(1, 5):
                number = plus(times(number, 3), _trit(x, start + group * digit, inverse))
            put_bytes(dst, o + j, _fraction(number))
        for j in range(4):
            number = 0
            for digit in range(4):
                scaled = x[i + 240 + j + 4 * digit] * inverse
                digit_less_one = 1 if 0.5 <= scaled < HUGE else -1 if -HUGE < scaled <= -0.5 else 0
                number = 3 * number + 1 + digit_less_one
            dst[o + 48 + j] = (3 * number * 256 + 242) // 243
        put_word(dst, o + 52, _word(d))


def tq2_0(x, dst, blocks):
    for k in range(blocks):
        i, o = 256 * k, 66 * k
        d = _largest(x, i)
        inverse = _inverse(d)
        for j in range(0, 64, 16):
            start = i + 128 * (j >> 5) + (j & 16)
            packed = _trit(x, start, inverse)
            for part in range(1, 4):
                packed = either(packed, left(_trit(x, start + 32 * part, inverse), 2 * part))
            put_bytes(dst, o + j, packed)
        put_word(dst, o + 64, _word(d))


@njit
def _fp4(values, unit):
    a = size(values)
    code = exceeds(a, np.float32(MIDDLES[0]) * unit)
    for middle in MIDDLES[1:]:
        code = plus(code, exceeds(a, np.float32(middle) * unit))
    sign = both(right(words_of(values), 28), 8)  # of a code above 0 only: adding 7 carries into bit 3 then
    return either(code, both(plus(code, 7), sign))


def mxfp4(x, dst, blocks):
    for k in range(blocks):
        i, o = 32 * k, 17 * k
        a, b = floats_at(x, i), floats_at(x, i + 16)
        peak = highest(most(size(a), size(b)))
        e = (np.int32(np.floor(np.log2(peak))) + 125) & 255 if peak > 0 else 0
        unit = from_bits(np.int32((e - 1) << 23 if e > 1 else 0x00200000 << e))
        dst[o] = e
        put_bytes(dst, o + 1, either(_fp4(a, unit), left(_fp4(b, unit), 4)))


def f16(x, dst, blocks):
    for i in range(0, blocks - LANES + 1, LANES):
        put_words(dst, 2 * i, bits_of_half(floats_at(x, i)))
    for i in range(blocks // LANES * LANES, blocks):
        put_word(dst, 2 * i, _word(x[i]))


@njit
def _bfloat(values):
    """To nearest even; NaN stays NaN (rounding could carry it into infinity)."""
    words = words_of(values)
    rounded = right(plus(plus(words, 0x7FFF), both(right(words, 16), 1)), 16)
    quiet = either(right(words, 16), 64)
    nan = exceeds(both(words, 0x7FFFFFFF), 0x7F800000)
    return either(both(rounded, plus(nan, -1)), both(quiet, times(nan, -1)))


def bf16(x, dst, blocks):
    for i in range(0, blocks - LANES + 1, LANES):
        put_words(dst, 2 * i, _bfloat(floats_at(x, i)))
    for i in range(blocks // LANES * LANES, blocks):
        put_word(dst, 2 * i, first(_bfloat(every(x[i]))))


FUNCTIONS = {
    function.__name__.upper(): function
    for function in (f16, bf16, q1_0, q2_0, q4_0, q4_1, q5_0, q5_1, q8_0, tq1_0, tq2_0, mxfp4)
}


def kernel(name: str) -> Callable | None:
    """The compiled kernel of format `name`, or None if it has none."""
    function = FUNCTIONS.get(name)
    if function is None:
        return None
    try:
        return njit(SIGNATURE, nogil=True, cache=True)(function)
    except RuntimeError:  # no folder in which the compiled code could be kept
        return njit(SIGNATURE, nogil=True)(function)
