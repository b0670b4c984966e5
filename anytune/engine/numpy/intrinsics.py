"""Numba building blocks: arrays at an address, and an exponential that the compiler can vectorise."""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.extending import intrinsic

# Sums may be reordered (that is what lets them use whole registers); NaN and Inf must still come through.
FLAGS = {"reassoc", "contract", "arcp", "nsz"}
kernel = njit(nogil=True, cache=True, fastmath=FLAGS, error_model="numpy")


@intrinsic
def _as_pointer(typing, address, like):
    """An integer as a pointer to elements of like's type."""
    element = like.dtype if hasattr(like, "dtype") else like

    def build(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(element)(types.int64, like), build


@njit(nogil=True, cache=True)
def floats(address, count):
    """The `count` float32 at `address` as a contiguous array (no checks, no ownership)."""
    return carray(_as_pointer(address, np.float32(0)), (count,))


@njit(nogil=True, cache=True)
def ints(address, count):
    """The `count` int32 at `address` as a contiguous array (no checks, no ownership)."""
    return carray(_as_pointer(address, np.int32(0)), (count,))


@intrinsic
def float_of_bits(typing, bits):
    """The float32 whose bits are the int32 `bits`."""

    def build(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), build


_LOG2E, _LN2_HIGH, _LN2_LOW = np.float32(1.4426950408889634), np.float32(0.693359375), np.float32(-2.12194440e-4)
_C = [
    np.float32(c)
    for c in (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
]  # minimax for e^r on |r| <= ln2/2 (Cephes expf)
_C0, _C1, _C2, _C3, _C4, _C5 = _C
_HALF, _ONE = np.float32(0.5), np.float32(1)
_LOW, _HIGH = np.float32(-87.3), np.float32(88.3)


# No reordering in here: x - k*ln2 is split in two so that the first difference is exact.
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
    e = e * float_of_bits(np.int32((n + np.int32(127)) << np.int32(23)))
    return e if x >= _LOW or x != x else np.float32(0)
