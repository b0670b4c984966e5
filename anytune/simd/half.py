"""float16 in integers, for processors without instructions for it: to float32 and back, sixteen at once or one."""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from anytune.simd.registers import FLOAT, FLOATS, LANES, WORDS, everywhere, floats, ints


def from_half(builder, h):
    """IEEE half to single in integers: no library call on processors without F16C."""
    exponent, rest = (
        builder.and_(h, everywhere(0x7C00)),
        builder.shl(builder.and_(h, everywhere(0x7FFF)), everywhere(13)),
    )
    normal = builder.bitcast(builder.add(rest, everywhere(127 - 15 << 23)), FLOATS)
    special = builder.bitcast(builder.or_(rest, everywhere(0x7F800000)), FLOATS)
    tiny = builder.sitofp(builder.and_(h, everywhere(0x3FF)), FLOATS)
    tiny = builder.fmul(tiny, ir.Constant(FLOATS, [2.0**-24] * LANES))
    value = builder.select(builder.icmp_unsigned("==", exponent, everywhere(0x7C00)), special, normal)
    value = builder.select(builder.icmp_unsigned("==", exponent, everywhere(0)), tiny, value)
    sign = builder.shl(builder.and_(h, everywhere(0x8000)), everywhere(16))
    return builder.bitcast(builder.or_(builder.bitcast(value, WORDS), sign), FLOATS)


def to_half(builder, value):
    """Rounded to float16, to nearest even, in integers: no library call on processors without F16C."""
    word = builder.bitcast(value, WORDS)
    sign, bits = builder.and_(word, everywhere(-(2**31))), builder.and_(word, everywhere(0x7FFFFFFF))
    odd = builder.and_(builder.lshr(bits, everywhere(13)), everywhere(1))
    rounded = builder.and_(builder.add(bits, builder.add(odd, everywhere(0xFFF))), everywhere(~0x1FFF))
    # below 2^-14 halves are multiples of 2^-24, as floats between 0.5 and 1 are
    shift = ir.Constant(FLOATS, [0.5] * LANES)
    small = builder.fsub(builder.fadd(builder.bitcast(bits, FLOATS), shift), shift)
    tiny = builder.icmp_unsigned("<", bits, everywhere(0x38800000))
    rounded = builder.select(tiny, builder.bitcast(small, WORDS), rounded)
    beyond = builder.icmp_unsigned(">", rounded, everywhere(0x477FE000))
    rounded = builder.select(beyond, everywhere(0x7F800000), rounded)
    rounded = builder.select(builder.icmp_unsigned(">", bits, everywhere(0x7F800000)), bits, rounded)
    return builder.bitcast(builder.or_(rounded, sign), FLOATS)


@intrinsic
def from_bits(typing, word):
    """The float32 with these bits."""

    def code(context, builder, signature, args):
        return builder.bitcast(args[0], FLOAT)

    return types.float32(types.int32), code


@njit(inline="always")
def half_of_bits(h):
    """The float16 with the bits of the integer h, as float32."""
    exponent, rest, sign = h & 0x7C00, (h & 0x7FFF) << 13, np.int32((h & 0x8000) << 16)
    if exponent == 0:
        return np.float32(h & 0x3FF) * np.float32(2**-24) * (np.float32(-1) if sign else np.float32(1))
    if exponent == 0x7C00:
        return from_bits(np.int32(rest | 0x7F800000 | sign))
    return from_bits(np.int32(rest + (127 - 15 << 23) | sign))


@intrinsic
def bits_of_half(typing, values):
    """The bits of each float as float16, rounded to nearest even, in the low half of a lane."""

    def code(context, builder, signature, args):
        rounded = to_half(builder, args[0])
        word = builder.bitcast(rounded, WORDS)
        bits = builder.and_(word, everywhere(0x7FFFFFFF))
        tiny = builder.icmp_unsigned("<", bits, everywhere(0x38800000))
        units = builder.fmul(builder.bitcast(bits, FLOATS), ir.Constant(FLOATS, [2.0**24] * LANES))
        # selected first, since the conversion of large floats to integers is undefined
        units = builder.fptosi(builder.select(tiny, units, ir.Constant(FLOATS, [0.0] * LANES)), WORDS)
        half = builder.select(tiny, units, builder.sub(builder.lshr(bits, everywhere(13)), everywhere(0x1C000)))
        half = builder.select(builder.icmp_unsigned(">=", bits, everywhere(0x7F800000)), everywhere(0x7C00), half)
        half = builder.select(builder.icmp_unsigned(">", bits, everywhere(0x7F800000)), everywhere(0x7E00), half)
        return builder.or_(half, builder.and_(builder.lshr(word, everywhere(16)), everywhere(0x8000)))

    return ints(floats), code
