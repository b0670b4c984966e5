"""Numbers rounded to e4m3 inside kernels; see plain_fp8.py."""

from __future__ import annotations

import triton
import triton.language as tl

from ..plain_fp8 import LEAST, ROOM, TOP

FACTOR = tl.constexpr(ROOM / TOP)
SMALLEST = tl.constexpr(LEAST)


@triton.jit
def eighth(x):
    """float32 -> e4m3, cut off at its largest (as the instruction does it); what is no number stays none."""
    return x.to(tl.float8e4nv)


@triton.jit
def row_scale(largest):
    return tl.maximum(largest * FACTOR, SMALLEST)
