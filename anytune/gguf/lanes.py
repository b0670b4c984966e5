"""Sixteen integers or floats at once inside numba functions: what the block kernels are written in.

Numba does not vectorise loops as short as a block's, so these few operations are given to LLVM as vectors,
and it makes AVX-512, AVX2 or NEON code of them. Indexes are not checked: the caller vouches for them. No
operation is fused or reordered, so results are bit-equal to NumPy's.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, models, register_model

LANES = 16
I8, I32, FLOAT = ir.IntType(8), ir.IntType(32), ir.FloatType()
I32S, FLOATS = ir.VectorType(I32, LANES), ir.VectorType(FLOAT, LANES)


class Lanes(types.Type):
    """The numba type of sixteen values that live in registers."""


class Ints(Lanes):
    pass


class Floats(Lanes):
    pass


@register_model(Ints)
class _IntsModel(models.PrimitiveModel):
    def __init__(self, manager, kind):
        super().__init__(manager, kind, I32S)


@register_model(Floats)
class _FloatsModel(models.PrimitiveModel):
    def __init__(self, manager, kind):
        super().__init__(manager, kind, FLOATS)


ints, floats = Ints("ints x 16"), Floats("floats x 16")


def _address(context, builder, kind, array, at):
    return builder.gep(context.make_array(kind)(context, builder, array).data, [at])


def _splat(builder, value, vector):
    return builder.shuffle_vector(
        builder.insert_element(ir.Constant(vector, ir.Undefined), value, I32(0)),
        ir.Constant(vector, ir.Undefined),
        ir.Constant(I32S, [0] * LANES),
    )


def _load(extend, lanes):
    """Make an intrinsic (src uint8 [n], at) -> the byte, or the sixteen bytes, at `at`, as int32."""
    wide, narrow = (I32S, ir.VectorType(I8, LANES)) if lanes else (I32, I8)

    @intrinsic
    def load(typing, src, at):
        def code(context, builder, signature, args):
            pointer = _address(context, builder, signature.args[0], *args)
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
        pointer = _address(context, builder, signature.args[0], *args[:2])
        builder.store(args[2], builder.bitcast(pointer, FLOATS.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(dst, types.intp, floats), code


@intrinsic
def field(typing, values, shift, mask):
    """values >> shift & mask"""

    def code(context, builder, signature, args):
        shifted = builder.lshr(args[0], _splat(builder, args[1], I32S))
        return builder.and_(shifted, _splat(builder, args[2], I32S))

    return ints(ints, types.int32, types.int32), code


@intrinsic
def bits(typing, word, value):
    """Lane j is `value` where bit j of word is set, else 0."""

    def code(context, builder, signature, args):
        mask = builder.and_(_splat(builder, args[0], I32S), ir.Constant(I32S, [1 << j for j in range(LANES)]))
        zero = ir.Constant(I32S, [0] * LANES)
        return builder.select(builder.icmp_unsigned("!=", mask, zero), _splat(builder, args[1], I32S), zero)

    return ints(types.int32, types.int32), code


@intrinsic
def join(typing, low, high, shift):
    """low | high << shift"""

    def code(context, builder, signature, args):
        return builder.or_(args[0], builder.shl(args[1], _splat(builder, args[2], I32S)))

    return ints(ints, ints, types.int32), code


@intrinsic
def scaled(typing, scale, values, bias):
    """scale * float(values - bias)"""

    def code(context, builder, signature, args):
        centred = builder.sub(args[1], _splat(builder, args[2], I32S))
        return builder.fmul(_splat(builder, args[0], FLOATS), builder.sitofp(centred, FLOATS))

    return floats(types.float32, ints, types.int32), code


@intrinsic
def plus(typing, values, offset):
    """values + offset"""

    def code(context, builder, signature, args):
        return builder.fadd(args[0], _splat(builder, args[1], FLOATS))

    return floats(floats, types.float32), code


@intrinsic
def from_bits(typing, word):
    """The float32 with these bits."""

    def code(context, builder, signature, args):
        return builder.bitcast(args[0], FLOAT)

    return types.float32(types.int32), code


def _convert(name):
    """Make an intrinsic (src uint8 [n], at) -> the sixteen floats at `at`, stored as `name`."""
    narrow = {
        "half": ir.VectorType(ir.IntType(16), LANES),
        "bfloat": ir.VectorType(ir.IntType(16), LANES),
        "float": I32S,
    }[name]

    @intrinsic
    def convert(typing, src, at):
        def code(context, builder, signature, args):
            pointer = _address(context, builder, signature.args[0], *args)
            value = builder.load(builder.bitcast(pointer, narrow.as_pointer()), align=1)
            if name == "float":
                return builder.bitcast(value, FLOATS)
            value = builder.zext(value, I32S)
            if name == "bfloat":
                return builder.bitcast(builder.shl(value, ir.Constant(I32S, [16] * LANES)), FLOATS)
            return _half_lanes(builder, value)

        return floats(src, types.intp), code

    return convert


def _half_lanes(builder, h):
    """IEEE half to single in integers: no library call on processors without F16C."""

    def all_(number):
        return ir.Constant(I32S, [number] * LANES)

    exponent, rest = builder.and_(h, all_(0x7C00)), builder.shl(builder.and_(h, all_(0x7FFF)), all_(13))
    normal = builder.bitcast(builder.add(rest, all_(127 - 15 << 23)), FLOATS)
    special = builder.bitcast(builder.or_(rest, all_(0x7F800000)), FLOATS)
    tiny = builder.sitofp(builder.and_(h, all_(0x3FF)), FLOATS)
    tiny = builder.fmul(tiny, ir.Constant(FLOATS, [2.0**-24] * LANES))
    value = builder.select(builder.icmp_unsigned("==", exponent, all_(0x7C00)), special, normal)
    value = builder.select(builder.icmp_unsigned("==", exponent, all_(0)), tiny, value)
    sign = builder.shl(builder.and_(h, all_(0x8000)), all_(16))
    return builder.bitcast(builder.or_(builder.bitcast(value, I32S), sign), FLOATS)


load_halves, load_bfloats, load_floats = _convert("half"), _convert("bfloat"), _convert("float")


@njit(inline="always")
def half_bits(h):
    """The float16 with the bits of the integer h, as float32."""
    exponent, rest, sign = h & 0x7C00, (h & 0x7FFF) << 13, np.int32((h & 0x8000) << 16)
    if exponent == 0:
        return np.float32(h & 0x3FF) * np.float32(2**-24) * (np.float32(-1) if sign else np.float32(1))
    if exponent == 0x7C00:
        return from_bits(np.int32(rest | 0x7F800000 | sign))
    return from_bits(np.int32(rest + (127 - 15 << 23) | sign))


@njit(inline="always")
def half(src, at):
    """The float16 at byte `at`, as float32."""
    return half_bits(byte(src, at) | byte(src, at + 1) << 8)
