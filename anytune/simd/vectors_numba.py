"""vectors.py's names for the compiler: sixteen lanes in a register. Importing this module is what adds them."""

from __future__ import annotations

import operator

from numba import types
from numba.extending import intrinsic, overload

from anytune.simd import vectors
from anytune.simd.half import to_half
from anytune.simd.registers import FLOATS, LANES, Floats, floats, splat


def _row(context, builder, kind, tile, row):
    """Pointer to sixteen lanes: a tile in compiled code is float32 [rows, 16]."""
    data = context.make_array(kind)(context, builder, tile).data
    return builder.bitcast(builder.gep(data, [builder.mul(row, row.type(LANES))]), FLOATS.as_pointer())


def _vector(context, builder, kind, value):
    """A scalar in every lane, rounded to float32; a vector as it is."""
    if isinstance(kind, Floats):
        return value
    return splat(builder, context.cast(builder, value, kind, types.float32), FLOATS)


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
