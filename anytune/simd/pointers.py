"""Arrays at an address: what kernels that are given addresses begin with."""

from __future__ import annotations

import numpy as np
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
