"""GGUF blocks to weights, by Triton: into a column slice of a matrix, or the rows of an embedding table.

The results equal blocks.dequantize's bit for bit (so no multiplication is fused with an addition), rounded to out's
dtype.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .entry import Entry
from .. import blocks
from .formats import FORMATS, aligned, book_of, constants

SUPPORTED: frozenset[str] = frozenset(FORMATS)
OCTETS, WARPS = 128, 1  # of a program's tile; each thread has OCTETS / (32 * WARPS) at once
GATHER_OCTETS, GATHER_WARPS = 64, 2  # the same for a gather, one row at a time: few rows, so narrow tiles


@Entry
@triton.jit
def _dequantize(
    raw,
    ids,
    book,
    out,
    rows,
    octets,
    raw_stride,
    out_stride,
    part,
    part_stride,
    factor,
    SCALES: tl.constexpr,
    OCTET: tl.constexpr,
    SIZE: tl.constexpr,
    SHIFT: tl.constexpr,
    WORD: tl.constexpr,
    GATHER: tl.constexpr,
    R: tl.constexpr,
    C: tl.constexpr,
):
    """out[row] = row of raw, or factor * row ids[row] of raw, in parts of `part` rows. Program p: R rows, C octets of
    each."""
    p, across = tl.program_id(0), tl.cdiv(octets, C)
    row = (p // across * R + tl.arange(0, R)).to(tl.int64)[None, :]
    unit = (p % across * C + tl.arange(0, C))[:, None]
    inside = (row < rows) & (unit < octets)
    row = tl.minimum(row, rows - 1)  # what lies outside is read from the edge again, and not written
    at = tl.minimum(unit, octets - 1)
    source = tl.load(ids + row).to(tl.int64) if GATHER else row
    block = raw + source * raw_stride + (at >> SHIFT) * SIZE
    g = at & (1 << SHIFT) - 1
    scale, least = SCALES(block, g)
    y = scale[:, :, None] * OCTET(block, g, book, WORD) - least[:, :, None]
    if GATHER:
        y = y * factor
    to = (out + row // part * part_stride + row % part * out_stride + unit * 8)[:, :, None] + tl.arange(0, 8)[
        None, None, :
    ]
    tl.store(to, y.to(out.dtype.element_ty), mask=tl.broadcast_to(inside[:, :, None], to.shape))


def _fits(raw: torch.Tensor, name: str, out: torch.Tensor, rows: int) -> bool:
    """Whether the kernel can do it. ValueError if it makes no sense at all."""
    n = blocks.weights(raw, name)
    if out.shape[-1] != n or out.numel() != rows * n or out.stride(-1) != 1:
        raise ValueError(f"out must be [{rows}, {n}] with adjacent columns, not {tuple(out.shape)}")
    return n % 8 == 0 and raw.stride(1) == 1 and aligned(raw, name)


def _launch(raw, ids, name: str, out, factor: float, tile: tuple[int, int, int]) -> None:
    n = out.shape[-1]
    rows, octets, (r, c, warps) = out.numel() // n, n // 8, tile
    grid = (triton.cdiv(rows, r) * triton.cdiv(octets, c),)
    _dequantize[grid](
        raw,
        raw if ids is None else ids,
        book_of(raw, name),
        out,
        rows,
        octets,
        raw.stride(0),
        out.stride(-2),
        max(out.shape[-2], 1),
        out.stride(0) if out.ndim == 3 else 0,
        factor,
        **constants(raw, name),
        GATHER=ids is not None,
        R=r,
        C=c,
        num_warps=warps,
        enable_fp_fusion=False,
    )


def _tile(n: int) -> tuple[int, int, int]:
    """Rows and octets of a program, and its warps: whole rows' octets are divided without a rest where they can be."""
    octets = min(OCTETS, max(32, n // 8 & -(n // 8)))
    return OCTETS // octets, octets, WARPS


def dequantize(raw: torch.Tensor, name: str, out: torch.Tensor) -> None:
    """Blocks of type `name`, uint8 [rows, row_bytes], into out [rows, n] float with any row stride, or out [parts, rows
    of each, n] with any strides of these."""
    if not _fits(raw, name, out, len(raw)):
        blocks.dequantize_into(raw, name, out)
    elif out.numel():
        _launch(raw, None, name, out, 1.0, _tile(out.shape[-1]))


def gather(raw: torch.Tensor, ids: torch.Tensor, name: str, out: torch.Tensor, scale: float = 1.0) -> None:
    """out[i] = scale * row ids[i] of raw, the whole table; ids int32 or int64 [k], which are not checked; out as in
    dequantize()."""
    if not _fits(raw, name, out, ids.numel()):
        blocks.gather_into(raw, ids, name, out, scale)
    elif out.numel():
        _launch(raw, ids.reshape(-1), name, out, scale, (1, GATHER_OCTETS, GATHER_WARPS))
