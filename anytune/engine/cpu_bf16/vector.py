"""Sixteen float32 at once in numba functions: the few operations that the elementwise kernels are written in.

Numba's own loops leave half the speed of an exponential on the table and cannot end in bf16, so these operations are
given to LLVM as whole registers. Nothing is reordered: a kernel's result depends on nothing but its operands.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from anytune.gguf.lanes import floats

from . import lanes
from .lanes import ADDRESS, FLOATS, I32, LANES, WORDS

FUSED = "llvm.fma.v16f32"


def _constant(value: float):
    return ir.Constant(FLOATS, [float(np.float32(value))] * LANES)


def _made(result, *kinds):
    """Make an intrinsic from function(builder, *values) -> value (None where result is void)."""

    def made(function):
        def code(context, builder, signature, args):
            value = function(builder, *args)
            return context.get_dummy_value() if value is None else value

        names = ", ".join(f"a{i}" for i in range(len(kinds)))
        scope: dict = {"code": code, "signature": result(*kinds)}
        exec(f"def typing(context, {names}):\n    return signature, code", scope)
        return intrinsic(scope["typing"])

    return made


@_made(floats, ADDRESS)
def load(builder, source):
    """The sixteen float32 at source."""
    return lanes.load(builder, source, FLOATS, align=4)


@_made(types.void, ADDRESS, floats)
def store(builder, target, x):
    lanes.store(builder, x, target, align=4)


@_made(types.void, ADDRESS, floats)
def store_16(builder, target, x):
    """target: x as sixteen bf16."""
    lanes.store(builder, lanes.rounded(builder, x), target)


@_made(floats, floats)
def near(builder, x):
    """x rounded to bf16, as float32 again."""
    wide = builder.zext(lanes.rounded(builder, x), WORDS)
    return builder.bitcast(builder.shl(wide, ir.Constant(WORDS, [16] * LANES)), FLOATS)


@_made(floats, types.float32)
def fill(builder, value):
    """The value in every lane."""
    return lanes.splat(builder, value, FLOATS)


@_made(floats, floats, floats)
def add(builder, x, y):
    return builder.fadd(x, y)


@_made(floats, floats, floats)
def sub(builder, x, y):
    return builder.fsub(x, y)


@_made(floats, floats, floats)
def mul(builder, x, y):
    return builder.fmul(x, y)


@_made(floats, floats, floats)
def div(builder, x, y):
    return builder.fdiv(x, y)


def _fma(builder, x, y, z):
    return lanes.native(builder, FUSED, FLOATS, x, y, z)


@_made(floats, floats, floats, floats)
def fma(builder, x, y, z):
    """x * y + z, rounded once."""
    return _fma(builder, x, y, z)


@_made(floats, floats, floats)
def larger(builder, x, y):
    """The larger of each two; a NaN in x stays."""
    return builder.select(builder.fcmp_ordered("<", x, y), y, x)


@_made(floats, floats, floats, ADDRESS, ADDRESS, ADDRESS)
def within(builder, x, other, first, low, high):
    """x in the lanes i with low <= first + i < high, `other` in the rest."""
    place = lanes.splat(builder, builder.trunc(first, I32), WORDS)
    place = builder.add(place, ir.Constant(WORDS, list(range(LANES))))
    start, end = (lanes.splat(builder, builder.trunc(n, I32), WORDS) for n in (low, high))
    inside = builder.and_(builder.icmp_signed(">=", place, start), builder.icmp_signed("<", place, end))
    return builder.select(inside, x, other)


def _folded(builder, x, operation):
    """The sixteen lanes folded by halves into one, in one order."""
    for step in (8, 4, 2, 1):
        x = operation(builder, x, lanes.shuffle(builder, x, x, [(i + step) % LANES for i in range(LANES)]))
    return builder.extract_element(x, I32(0))


@_made(types.float32, floats)
def total(builder, x):
    """The sum of the lanes."""
    return _folded(builder, x, lambda b, p, q: b.fadd(p, q))


@_made(types.float32, floats)
def largest(builder, x):
    return _folded(builder, x, lambda b, p, q: b.select(b.fcmp_ordered("<", p, q), q, p))


@_made(types.float32, floats)
def first(builder, x):
    """Lane 0."""
    return builder.extract_element(x, I32(0))


LOG2E, LN2_HIGH, LN2_LOW, MAGIC = 1.4426950408889634, 0.693359375, -2.12194440e-4, 12582912.0  # 1.5 * 2^23
# Cephes
SERIES = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)


@_made(floats, floats)
def exp(builder, x):
    """e^x within 2 ulp for -87 < x < 88; below it stays under 2e-38, above it stays finite, NaN stays NaN."""
    x = builder.select(builder.fcmp_ordered("<", x, _constant(-87.3)), _constant(-87.3), x)
    x = builder.select(builder.fcmp_ordered(">", x, _constant(88.3)), _constant(88.3), x)
    shifted = _fma(builder, x, _constant(LOG2E), _constant(MAGIC))  # its low bits are n = round(x / ln 2)
    n = builder.fsub(shifted, _constant(MAGIC))
    r = _fma(builder, n, _constant(-LN2_HIGH), x)
    r = _fma(builder, n, _constant(-LN2_LOW), r)
    e = _constant(SERIES[0])
    for coefficient in SERIES[1:]:
        e = _fma(builder, e, r, _constant(coefficient))
    e = builder.fadd(_fma(builder, e, builder.fmul(r, r), r), _constant(1.0))
    power = builder.shl(builder.bitcast(shifted, WORDS), ir.Constant(WORDS, [23] * LANES))
    return builder.bitcast(builder.add(builder.bitcast(e, WORDS), power), FLOATS)
