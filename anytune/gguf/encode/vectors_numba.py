"""vectors.py's names for the compiler: sixteen lanes in a register. Importing this module is what adds them."""

from __future__ import annotations

import operator

from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from anytune.gguf.encode import vectors
from anytune.gguf.lanes import FLOATS, I32S, LANES, Floats, _splat, floats


def _row(context, builder, kind, tile, row):
    """Pointer to sixteen lanes: a tile in compiled code is float32 [rows, 16]."""
    data = context.make_array(kind)(context, builder, tile).data
    return builder.bitcast(builder.gep(data, [builder.mul(row, row.type(LANES))]), FLOATS.as_pointer())


def _vector(context, builder, kind, value):
    """A scalar in every lane, rounded to float32; a vector as it is."""
    if isinstance(kind, Floats):
        return value
    return _splat(builder, context.cast(builder, value, kind, types.float32), FLOATS)


def everywhere(number):
    """An integer in every lane."""
    return ir.Constant(I32S, [number] * LANES)


@intrinsic
def _load(typing, tile, row):
    def code(context, builder, signature, args):
        return builder.load(_row(context, builder, signature.args[0], *args), align=4)

    return floats(tile, types.intp), code


@intrinsic
def _keep(typing, tile, row, values):
    def code(context, builder, signature, args):
        value = _vector(context, builder, signature.args[2], args[2])
        builder.store(value, _row(context, builder, signature.args[0], *args[:2]), align=4)
        return context.get_dummy_value()

    return types.void(tile, types.intp, values), code


@intrinsic
def _spread(typing, value):
    def code(context, builder, signature, args):
        return _vector(context, builder, signature.args[0], args[0])

    return floats(value), code


@intrinsic
def _where_less(typing, a, b, yes, no):
    def code(context, builder, signature, args):
        a, b, yes, no = (
            _vector(context, builder, kind, value) for kind, value in zip(signature.args, args, strict=True)
        )
        return builder.select(builder.fcmp_ordered("<", a, b), yes, no)

    return floats(a, b, yes, no), code


def _arithmetic(name):
    @intrinsic
    def operation(typing, a, b):
        def code(context, builder, signature, args):
            return getattr(builder, name)(
                *(_vector(context, builder, kind, value) for kind, value in zip(signature.args, args, strict=True))
            )

        return floats(a, b), code

    return operation


def to_half(builder, value):
    """Rounded to float16, to nearest even, in integers: no library call on processors without F16C."""
    word = builder.bitcast(value, I32S)
    sign, bits = builder.and_(word, everywhere(-(2**31))), builder.and_(word, everywhere(0x7FFFFFFF))
    odd = builder.and_(builder.lshr(bits, everywhere(13)), everywhere(1))
    rounded = builder.and_(builder.add(bits, builder.add(odd, everywhere(0xFFF))), everywhere(~0x1FFF))
    # below 2^-14 halves are multiples of 2^-24, as floats between 0.5 and 1 are
    shift = ir.Constant(FLOATS, [0.5] * LANES)
    small = builder.fsub(builder.fadd(builder.bitcast(bits, FLOATS), shift), shift)
    tiny = builder.icmp_unsigned("<", bits, everywhere(0x38800000))
    rounded = builder.select(tiny, builder.bitcast(small, I32S), rounded)
    beyond = builder.icmp_unsigned(">", rounded, everywhere(0x477FE000))
    rounded = builder.select(beyond, everywhere(0x7F800000), rounded)
    rounded = builder.select(builder.icmp_unsigned(">", bits, everywhere(0x7F800000)), bits, rounded)
    return builder.bitcast(builder.or_(rounded, sign), FLOATS)


@intrinsic
def _to_half(typing, values):
    def code(context, builder, signature, args):
        return to_half(builder, args[0])

    return floats(floats), code


@overload(vectors.load, inline="always")
def _(tile, row):
    return lambda tile, row: _load(tile, row)


@overload(vectors.keep, inline="always")
def _(tile, row, values):
    return lambda tile, row, values: _keep(tile, row, values)


@overload(vectors.spread, inline="always")
def _(tile, value):
    return lambda tile, value: _spread(value)


@overload(vectors.where_less, inline="always")
def _(a, b, yes, no):
    return lambda a, b, yes, no: _where_less(a, b, yes, no)


@overload(vectors.to_half, inline="always")
def _(values):
    return lambda values: _to_half(values)


def _operator(symbol, name):
    made = _arithmetic(name)

    @overload(symbol)
    def _(a, b):
        if isinstance(a, Floats) or isinstance(b, Floats):
            return lambda a, b: made(a, b)


for _symbol, _name in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _operator(_symbol, _name)
