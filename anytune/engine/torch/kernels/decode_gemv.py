"""One row times a matrix of Q8_0 or Q4_0 blocks, with the norm, the sum or the gated product before it.

Blocks of 34 or 18 bytes do not fit loads of 4: reading them a block a thread takes nine lines of cache a load. Here the
threads of a warp read a row's words side by side, whatever block they belong to, and find the scale of each by its
place. What a word's weights are multiplied with depends on its place alone, so it is made once for all rows of a
program. A norm needs no pass of its own: its factor is known when the sum is, and is applied then.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..plain import STEEPEST  # noqa: F401
from .glu_backward import sigmoid

BITS = {"Q8_0": 8, "Q4_0": 4}
PLAIN, NORM, GLU = 0, 1, 2
# (rows of a program, warps) by the matrix's rows, at least
SHAPES = ((32768, 8, 2), (8192, 8, 2), (3072, 8, 4), (0, 4, 4))


@triton.jit
def _inputs(x, more, gain, total, at, there, ADD: tl.constexpr, KIND: tl.constexpr, GELU: tl.constexpr):
    """(what a weight of input `at` is multiplied with but for the norm's factor, its square before the gain)."""
    s = tl.load(x + at, mask=there, other=0).to(tl.float32)
    if ADD:
        rounded = (s + tl.load(more + at, mask=there, other=0).to(tl.float32)).to(total.dtype.element_ty)
        tl.store(total + at, rounded, mask=there & (tl.program_id(0) == 0))
        s = rounded.to(tl.float32)
    square = s * s
    if KIND == 1:
        s *= tl.load(gain + at, mask=there, other=0)
    if KIND == 2:
        factor, slope = sigmoid(s, GELU)
        s = (s * factor * tl.load(more + at, mask=there, other=0).to(tl.float32)).to(x.dtype.element_ty).to(tl.float32)
    return s, square


@triton.jit
def _decode_gemv(
    x,
    more,
    gain,
    total,
    raw,
    out,
    rows,
    words,
    n,
    eps,
    stride,
    BITS: tl.constexpr,
    KIND: tl.constexpr,
    ADD: tl.constexpr,
    GELU: tl.constexpr,
    R: tl.constexpr,
    C: tl.constexpr,
):
    """Grid (R rows of the matrix each). raw: int32 words, `stride` a row, `words` of them used."""
    row = tl.program_id(0) * R + tl.arange(0, R)
    start = raw + tl.minimum(row, rows - 1).to(tl.int64)[:, None] * stride
    scales = raw.to(tl.pointer_type(tl.float16)) + tl.minimum(row, rows - 1).to(tl.int64)[:, None] * (2 * stride)
    UNIT: tl.constexpr = 1 + 2 * BITS  # half words of a block, the first of them its scale
    sums, squares = tl.zeros([R, C], tl.float32), tl.zeros([C], tl.float32)
    for first in range(0, words, C):
        word = first + tl.arange(0, C)
        values = tl.load(start + word[None, :], mask=(word < words)[None, :], other=0)
        for half in tl.static_range(2):
            place = 2 * word + half
            block, within = place // UNIT, place % UNIT
            there = (place < 2 * words) & (within > 0)
            at = block * 32 + 2 * (within - 1)
            scale = tl.load(scales + (block * UNIT)[None, :], mask=there[None, :], other=0).to(tl.float32)
            dot = tl.zeros([R, C], tl.float32)
            for byte in tl.static_range(2):
                bits = values >> (16 * half + 8 * byte)
                one, square = _inputs(x, more, gain, total, at + byte, there, ADD, KIND, GELU)
                squares += square
                if BITS == 8:
                    dot += bits.to(tl.int8).to(tl.float32) * one[None, :]
                else:
                    two, square = _inputs(x, more, gain, total, at + byte + 16, there, ADD, KIND, GELU)
                    squares += square
                    dot += ((bits & 15) - 8).to(tl.float32) * one[None, :]
                    dot += ((bits >> 4 & 15) - 8).to(tl.float32) * two[None, :]
            sums += scale * dot
    y = tl.sum(sums, 1)
    if KIND == 1:
        y *= tl.rsqrt(tl.sum(squares, 0) / n + eps)
    tl.store(out + row, y.to(out.dtype.element_ty), mask=row < rows)


def takes(x: torch.Tensor, raw: torch.Tensor, name: str) -> bool:
    """Whether decode_gemv() has this product: one row, words of 4 bytes."""
    return (
        name in BITS
        and len(x) == 1
        and x.stride(1) == raw.stride(1) == 1
        and not raw.shape[1] % 4
        and not raw.stride(0) % 4
        and not raw.data_ptr() % 4
    )


def decode_gemv(
    x, raw, name: str, out, *, more=None, total=None, gain=None, eps: float = 0.0, activation: str | None = None
) -> None:
    """out [1, rows] = y · dequantized(raw)ᵀ, summed in float32, where takes().

    y: x [1, in]; the gated product of x and `more`, with `activation`; or the RMSNorm with `gain` of x, or of x + more,
    which is then written to `total`.
    """
    rows, kind = len(raw), GLU if activation else PLAIN if gain is None else NORM
    add = total is not None
    r, warps = next((r, w) for least, r, w in SHAPES if rows >= least)
    _decode_gemv[(triton.cdiv(rows, r),)](
        x,
        x if more is None else more,
        x if gain is None else gain,
        total if add else x,
        raw.view(torch.int32),
        out,
        rows,
        raw.shape[1] // 4,
        x.shape[1],
        eps,
        raw.stride(0) // 4,
        BITS=BITS[name],
        KIND=kind,
        ADD=add,
        GELU=activation == "gelu",
        R=r,
        C=32 * warps,
        num_warps=warps,
    )
