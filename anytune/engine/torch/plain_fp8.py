"""Rounding to 8-bit floats (e4m3) with a scale for each row, in plain torch; kernels/fp8.py has the twins.

A row's largest element becomes TOP / ROOM: an 8-bit float is as exact there as at TOP, and a low-rank part beside the
row may be ROOM times as large as anything in it before it is cut off. What is no number stays none.
"""

from __future__ import annotations

import torch

from .arrays import on_nvidia

Tensor = torch.Tensor
F8 = torch.float8_e4m3fn
TOP = 448.0  # the largest e4m3
ROOM = 16.0
LEAST = 2.0**-100  # of a scale: rows of zeros


def rounded(x: Tensor) -> Tensor:
    """float32 -> e4m3, nearest even, cut off at ±TOP."""
    return x.clamp(-TOP, TOP).to(F8)


def scales(largest: Tensor) -> Tensor:
    """float32: what a row with this largest magnitude is divided by."""
    return (largest.float() * (ROOM / TOP)).clamp(min=LEAST)


def quantize(x, low, out, scale, size=None):
    """out e4m3 [T, n + R] = [x | low] / scale, scale float32 [T] from each row of x [T, n]; size, if given, gets the
    Euclidean norm of each row of x (float32 [T]). low [T, R], or None: then out is [T, n]."""
    n = x.shape[1]
    scale.copy_(scales(x.abs().amax(1)))
    out[:, :n] = rounded(x.float() / scale[:, None])
    if low is not None:
        out[:, n:] = rounded(low.float() / scale[:, None])
    if size is not None:
        size.copy_(torch.linalg.vector_norm(x, dim=1, dtype=torch.float32))


def turn(source, scale, out):
    """out e4m3 [n, rows] = (source / scale)ᵀ: source [rows, n], scale float32 [n]."""
    out.copy_(rounded(source.float() / scale).t())


def product_fp8(a, a_scale, b, b_scale, dtype):
    """(a_scale a) (b_scale b)ᵀ, of a [T, K] and b [n, K] in e4m3, scales float32 [T] and [n] -> [T, n] of dtype."""
    if on_nvidia(a):
        return torch._scaled_mm(
            a, b.t(), scale_a=a_scale[:, None], scale_b=b_scale[None], out_dtype=dtype, use_fast_accum=True
        )
    return ((a.float() @ b.float().t()) * a_scale[:, None] * b_scale).to(dtype)
