"""e^x in float32, one number at a time and sixteen at once, from one series.

x = n ln 2 + r with |r| <= ln 2 / 2, where n ln 2 is split in two so that the first difference is exact; e^r by a
minimax polynomial (Cephes' expf); 2^n into the exponent. The form for one number is what the compiler vectorises for
any processor; the one for a register is fused throughout.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import njit

from anytune.simd.half import from_bits
from anytune.simd.vectors import MAGIC
from anytune.simd.registers import FLOATS, LANES, WORDS, everywhere, floats, made, native

LOG2E, LN2_HIGH, LN2_LOW = 1.4426950408889634, 0.693359375, -2.12194440e-4
SERIES = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
LOW, HIGH = -87.3, 88.3
FUSED = "llvm.fma.v16f32"

_LOG2E, _LN2_HIGH, _LN2_LOW, _LOW, _HIGH, _HALF, _ONE = map(np.float32, (LOG2E, LN2_HIGH, LN2_LOW, LOW, HIGH, 0.5, 1))
_C0, _C1, _C2, _C3, _C4, _C5 = map(np.float32, SERIES)


# No reordering in here.
@njit(nogil=True, cache=True, fastmath={"contract"}, error_model="numpy")
def exp(x):
    """e^x in float32 within 2 ulp: below -87.3 it gives 0, above 88.3 e^88.3 (finite); NaN stays NaN."""
    z = min(max(x, _LOW), _HIGH) if x == x else x
    t = z * _LOG2E
    n = np.int32(t + (_HALF if t >= np.float32(0) else -_HALF))
    k = np.float32(n)
    r = (z - k * _LN2_HIGH) - k * _LN2_LOW
    e = ((((_C0 * r + _C1) * r + _C2) * r + _C3) * r + _C4) * r + _C5
    e = e * r * r + r + _ONE
    e = e * from_bits(np.int32((n + np.int32(127)) << np.int32(23)))
    return e if x >= _LOW or x != x else np.float32(0)


def constant(value: float):
    """A float32 in every lane."""
    return ir.Constant(FLOATS, [float(np.float32(value))] * LANES)


def fma(builder, x, y, z):
    """x * y + z, rounded once."""
    return native(builder, FUSED, FLOATS, x, y, z)


@made(floats, floats)
def exp_16(builder, x):
    """e^x within 2 ulp for -87 < x < 88; below it stays under 2e-38, above it stays finite, NaN stays NaN."""
    x = builder.select(builder.fcmp_ordered("<", x, constant(LOW)), constant(LOW), x)
    x = builder.select(builder.fcmp_ordered(">", x, constant(HIGH)), constant(HIGH), x)
    shifted = fma(builder, x, constant(LOG2E), constant(MAGIC))  # its low bits are n = round(x / ln 2)
    n = builder.fsub(shifted, constant(MAGIC))
    r = fma(builder, n, constant(-LN2_HIGH), x)
    r = fma(builder, n, constant(-LN2_LOW), r)
    e = constant(SERIES[0])
    for coefficient in SERIES[1:]:
        e = fma(builder, e, r, constant(coefficient))
    e = builder.fadd(fma(builder, e, builder.fmul(r, r), r), constant(1.0))
    power = builder.shl(builder.bitcast(shifted, WORDS), everywhere(23))
    return builder.bitcast(builder.add(builder.bitcast(e, WORDS), power), FLOATS)
