"""From floats to the bits and bytes of blocks, sixteen at once: what the encoders' searches end in.

Indexes are not checked: the caller vouches for them.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from anytune.simd.registers import FLOATS, I8, I16, I32, LANES, WORDS, array_address, floats, ints, splat

SHORTS, BYTES = ir.VectorType(I16, LANES), ir.VectorType(I8, LANES)


@intrinsic
def floats_at(typing, x, at):
    """x[at:at + 16] of a flat float32 array."""

    def code(context, builder, signature, args):
        pointer = array_address(context, builder, signature.args[0], *args)
        return builder.load(builder.bitcast(pointer, FLOATS.as_pointer()), align=4)

    return floats(x, types.intp), code


def _extreme(name):
    @intrinsic
    def across(typing, values):
        """The largest (or least) of the sixteen."""

        def code(context, builder, signature, args):
            value = args[0]
            for width in (8, 4, 2, 1):
                turned = builder.shuffle_vector(
                    value,
                    ir.Constant(FLOATS, ir.Undefined),
                    ir.Constant(WORDS, [(lane + width) % LANES for lane in range(LANES)]),
                )
                value = builder.select(builder.fcmp_ordered(name, value, turned), value, turned)
            return builder.extract_element(value, I32(0))

        return types.float32(floats), code

    return across


highest, lowest = _extreme(">"), _extreme("<")


@intrinsic
def whole(typing, values):
    """Cut off to integers, towards zero."""

    def code(context, builder, signature, args):
        return builder.fptosi(args[0], WORDS)

    return ints(floats), code


@intrinsic
def real(typing, values):
    def code(context, builder, signature, args):
        return builder.sitofp(args[0], FLOATS)

    return floats(ints), code


@intrinsic
def words_of(typing, values):
    """The bits of each float."""

    def code(context, builder, signature, args):
        return builder.bitcast(args[0], WORDS)

    return ints(floats), code


def _integer(name, doc):
    @intrinsic
    def operation(typing, a, number):
        def code(context, builder, signature, args):
            other = (
                args[1]
                if signature.args[1] == ints
                else splat(builder, context.cast(builder, args[1], signature.args[1], types.int32), WORDS)
            )
            return getattr(builder, name)(args[0], other)

        return ints(ints, number), code

    operation.__doc__ = doc
    return operation


plus, times = _integer("add", "a + number"), _integer("mul", "a * number")
both, either = _integer("and_", "a & number"), _integer("or_", "a | number")
left, right = _integer("shl", "a << number"), _integer("lshr", "a >> number, zeros coming in")


@intrinsic
def at_most(typing, a, number):
    def code(context, builder, signature, args):
        other = splat(builder, context.cast(builder, args[1], signature.args[1], types.int32), WORDS)
        return builder.select(builder.icmp_signed("<", args[0], other), args[0], other)

    return ints(ints, number), code


@intrinsic
def exceeds(typing, a, b):
    """1 where a > b, else 0; a floats or integers, b a number."""

    def code(context, builder, signature, args):
        if signature.args[0] == ints:
            other = splat(builder, context.cast(builder, args[1], signature.args[1], types.int32), WORDS)
            return builder.zext(builder.icmp_signed(">", args[0], other), WORDS)
        other = splat(builder, context.cast(builder, args[1], signature.args[1], types.float32), FLOATS)
        return builder.zext(builder.fcmp_ordered(">", args[0], other), WORDS)

    return ints(a, b), code


@intrinsic
def bit(typing, values, number):
    """Bit `number` of each lane: sixteen bits, lane 0 the lowest."""

    def code(context, builder, signature, args):
        shift = splat(builder, context.cast(builder, args[1], signature.args[1], types.int32), WORDS)
        ones = builder.trunc(builder.lshr(args[0], shift), ir.VectorType(ir.IntType(1), LANES))
        return builder.zext(builder.bitcast(ones, I16), I32)

    return types.int32(ints, number), code


def _putter(vector):
    @intrinsic
    def put(typing, dst, at, values):
        """The lowest byte (or two) of each lane to dst, a flat uint8 array, from byte `at` on."""

        def code(context, builder, signature, args):
            pointer = array_address(context, builder, signature.args[0], *args[:2])
            builder.store(builder.trunc(args[2], vector), builder.bitcast(pointer, vector.as_pointer()), align=1)
            return context.get_dummy_value()

        return types.void(dst, types.intp, ints), code

    return put


put_bytes, put_words = _putter(BYTES), _putter(SHORTS)


@intrinsic
def put_word(typing, dst, at, word):
    """Two bytes of an integer."""

    def code(context, builder, signature, args):
        pointer = array_address(context, builder, signature.args[0], *args[:2])
        value = builder.trunc(context.cast(builder, args[2], signature.args[2], types.int32), I16)
        builder.store(value, builder.bitcast(pointer, I16.as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(dst, types.intp, word), code


@intrinsic
def first(typing, values):
    """Lane 0."""

    def code(context, builder, signature, args):
        return builder.extract_element(args[0], I32(0))

    return types.int32(ints), code


@intrinsic
def every(typing, value):
    """A number in all lanes."""

    def code(context, builder, signature, args):
        return splat(builder, args[0], FLOATS)

    return floats(types.float32), code
