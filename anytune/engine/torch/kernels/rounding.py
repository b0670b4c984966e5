"""Numbers rounded to e4m3 inside kernels; see plain_fp8.py."""

from __future__ import annotations

import triton
import triton.language as tl

from ..plain_fp8 import LEAST, ROOM, TOP

LARGEST = tl.constexpr(TOP)
FACTOR = tl.constexpr(ROOM / TOP)
SMALLEST = tl.constexpr(LEAST)


@triton.jit
def eighth(x):
    """float32 -> e4m3, cut off at its largest; what is no number stays none."""
    return tl.clamp(x, -LARGEST, LARGEST, propagate_nan=tl.PropagateNan.ALL).to(tl.float8e4nv)


@triton.jit
def row_scale(largest):
    return tl.maximum(largest * FACTOR, SMALLEST)
