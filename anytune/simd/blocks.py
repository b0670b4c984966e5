"""What the block formats' kernels are written in: bytes of a block to sixteen numbers.

Indexes are not checked: the caller vouches for them.
"""

from __future__ import annotations

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from anytune.simd.half import from_half, half_of_bits
from anytune.simd.registers import FLOATS, I8, I32, LANES, WORDS, array_address, floats, ints, splat


def _load(extend, lanes):
    """Make an intrinsic (src uint8 [n], at) -> the byte, or the sixteen bytes, at `at`, as int32."""
    wide, narrow = (WORDS, ir.VectorType(I8, LANES)) if lanes else (I32, I8)

    @intrinsic
    def load(typing, src, at):
        def code(context, builder, signature, args):
            pointer = array_address(context, builder, signature.args[0], *args)
            value = builder.load(builder.bitcast(pointer, narrow.as_pointer()), align=1)
            return getattr(builder, extend)(value, wide)

        return (ints if lanes else types.int32)(src, types.intp), code

    return load


byte, signed_byte = _load("zext", False), _load("sext", False)
load_bytes, load_signed = _load("zext", True), _load("sext", True)


@intrinsic
def store(typing, dst, at, values):
    """dst[at:at + 16] = values"""

    def code(context, builder, signature, args):
        pointer = array_address(context, builder, signature.args[0], *args[:2])
        builder.store(args[2], builder.bitcast(pointer, FLOATS.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(dst, types.intp, floats), code


@intrinsic
def field(typing, values, shift, mask):
    """values >> shift & mask"""

    def code(context, builder, signature, args):
        shifted = builder.lshr(args[0], splat(builder, args[1], WORDS))
        return builder.and_(shifted, splat(builder, args[2], WORDS))

    return ints(ints, types.int32, types.int32), code


@intrinsic
def bits(typing, word, value):
    """Lane j is `value` where bit j of word is set, else 0."""

    def code(context, builder, signature, args):
        mask = builder.and_(splat(builder, args[0], WORDS), ir.Constant(WORDS, [1 << j for j in range(LANES)]))
        zero = ir.Constant(WORDS, [0] * LANES)
        return builder.select(builder.icmp_unsigned("!=", mask, zero), splat(builder, args[1], WORDS), zero)

    return ints(types.int32, types.int32), code


@intrinsic
def pairs(typing, word):
    """Lane j is the bits 2 j and 2 j + 1 of a word of 32."""

    def code(context, builder, signature, args):
        shifted = builder.lshr(splat(builder, args[0], WORDS), ir.Constant(WORDS, [2 * j for j in range(LANES)]))
        return builder.and_(shifted, ir.Constant(WORDS, [3] * LANES))

    return ints(types.int32), code


@intrinsic
def join(typing, low, high, shift):
    """low | high << shift"""

    def code(context, builder, signature, args):
        return builder.or_(args[0], builder.shl(args[1], splat(builder, args[2], WORDS)))

    return ints(ints, ints, types.int32), code


@intrinsic
def scaled(typing, scale, values, bias):
    """scale * float(values - bias)"""

    def code(context, builder, signature, args):
        centred = builder.sub(args[1], splat(builder, args[2], WORDS))
        return builder.fmul(splat(builder, args[0], FLOATS), builder.sitofp(centred, FLOATS))

    return floats(types.float32, ints, types.int32), code


@intrinsic
def plus(typing, values, offset):
    """values + offset"""

    def code(context, builder, signature, args):
        return builder.fadd(args[0], splat(builder, args[1], FLOATS))

    return floats(floats, types.float32), code


def _convert(name):
    """Make an intrinsic (src uint8 [n], at) -> the sixteen floats at `at`, stored as `name`."""
    narrow = {
        "half": ir.VectorType(ir.IntType(16), LANES),
        "bfloat": ir.VectorType(ir.IntType(16), LANES),
        "float": WORDS,
    }[name]

    @intrinsic
    def convert(typing, src, at):
        def code(context, builder, signature, args):
            pointer = array_address(context, builder, signature.args[0], *args)
            value = builder.load(builder.bitcast(pointer, narrow.as_pointer()), align=1)
            if name == "float":
                return builder.bitcast(value, FLOATS)
            value = builder.zext(value, WORDS)
            if name == "bfloat":
                return builder.bitcast(builder.shl(value, ir.Constant(WORDS, [16] * LANES)), FLOATS)
            return from_half(builder, value)

        return floats(src, types.intp), code

    return convert


load_halves, load_bfloats, load_floats = _convert("half"), _convert("bfloat"), _convert("float")


@njit(inline="always")
def uint16(src, at):
    """The uint16 at byte `at`."""
    return byte(src, at) | byte(src, at + 1) << 8


@njit(inline="always")
def half(src, at):
    """The float16 at byte `at`, as float32."""
    return half_of_bits(uint16(src, at))
