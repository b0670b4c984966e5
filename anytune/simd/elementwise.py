"""Sixteen float32 at once in numba functions: the few operations that the elementwise kernels are written in.

Numba's own loops leave half the speed of an exponential on the table and cannot end in bf16, so these operations are
given to LLVM as whole registers. Nothing is reordered: a kernel's result depends on nothing but its operands.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types

from anytune.simd import bf16
from anytune.simd.exponential import fma as fused
from anytune.simd.registers import ADDRESS, FLOATS, I32, LANES, WORDS, everywhere, floats, made, shuffle, splat


@made(floats, ADDRESS)
def load(builder, source):
    """The sixteen float32 at source."""
    return bf16.load(builder, source, FLOATS, align=4)


@made(types.void, ADDRESS, floats)
def store(builder, target, x):
    bf16.store(builder, x, target, align=4)


@made(types.void, ADDRESS, floats)
def store_16(builder, target, x):
    """target: x as sixteen bf16."""
    bf16.store(builder, bf16.rounded(builder, x), target)


@made(floats, floats)
def near(builder, x):
    """x rounded to bf16, as float32 again."""
    wide = builder.zext(bf16.rounded(builder, x), WORDS)
    return builder.bitcast(builder.shl(wide, everywhere(16)), FLOATS)


@made(floats, types.float32)
def fill(builder, value):
    """The value in every lane."""
    return splat(builder, value, FLOATS)


@made(floats, floats, floats)
def add(builder, x, y):
    return builder.fadd(x, y)


@made(floats, floats, floats)
def sub(builder, x, y):
    return builder.fsub(x, y)


@made(floats, floats, floats)
def mul(builder, x, y):
    return builder.fmul(x, y)


@made(floats, floats, floats)
def div(builder, x, y):
    return builder.fdiv(x, y)


@made(floats, floats, floats, floats)
def fma(builder, x, y, z):
    """x * y + z, rounded once."""
    return fused(builder, x, y, z)


@made(floats, floats, floats)
def larger(builder, x, y):
    """The larger of each two; a NaN in x stays."""
    return builder.select(builder.fcmp_ordered("<", x, y), y, x)


@made(floats, floats, floats, ADDRESS, ADDRESS, ADDRESS)
def within(builder, x, other, first, low, high):
    """x in the lanes i with low <= first + i < high, `other` in the rest."""
    place = splat(builder, builder.trunc(first, I32), WORDS)
    place = builder.add(place, ir.Constant(WORDS, list(range(LANES))))
    start, end = (splat(builder, builder.trunc(n, I32), WORDS) for n in (low, high))
    inside = builder.and_(builder.icmp_signed(">=", place, start), builder.icmp_signed("<", place, end))
    return builder.select(inside, x, other)


def _folded(builder, x, operation):
    """The sixteen lanes folded by halves into one, in one order."""
    for step in (8, 4, 2, 1):
        x = operation(builder, x, shuffle(builder, x, x, [(i + step) % LANES for i in range(LANES)]))
    return builder.extract_element(x, I32(0))


@made(types.float32, floats)
def total(builder, x):
    """The sum of the bf16."""
    return _folded(builder, x, lambda b, p, q: b.fadd(p, q))


@made(types.float32, floats)
def largest(builder, x):
    return _folded(builder, x, lambda b, p, q: b.select(b.fcmp_ordered("<", p, q), q, p))


@made(types.float32, floats)
def first(builder, x):
    """Lane 0."""
    return builder.extract_element(x, I32(0))
