"""Sigmoid gates in Triton: one pass over memory each way."""

from __future__ import annotations

import triton
import triton.language as tl

from .glu_backward import columns
from .entry import Entry


@Entry
@triton.jit
def _gated(x, gate, dy, out, dgate, n, blocks, x_row, gate_row, dy_row, out_row, dgate_row, BACK: tl.constexpr,
           BLOCK: tl.constexpr):  # fmt: skip
    """Grid (row and block of columns)."""
    row = (tl.program_id(0) // blocks).to(tl.int64)
    column = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    mask = column < n
    value = tl.load(x + row * x_row + column, mask=mask, other=0).to(tl.float32)
    s = tl.sigmoid(tl.load(gate + row * gate_row + column, mask=mask, other=0).to(tl.float32))
    if BACK:
        d = tl.load(dy + row * dy_row + column, mask=mask, other=0).to(tl.float32)
        slope = d * value * s * (1 - s)
        tl.store(dgate + row * dgate_row + column, slope.to(dgate.dtype.element_ty), mask=mask)
        value = d
    tl.store(out + row * out_row + column, (value * s).to(out.dtype.element_ty), mask=mask)


def gated(x, gate, out) -> None:
    """The Triton twin of plain.gated."""
    _launch(x, gate, x, out, out, False)


def gated_backward(dy, x, gate, dx, dgate) -> None:
    """The Triton twin of plain.gated_backward."""
    _launch(x, gate, dy, dx, dgate, True)


def _launch(x, gate, dy, out, dgate, back: bool) -> None:
    (tokens, n), tensors = x.shape, (x, gate, dy, out, dgate)
    if x.numel():
        block, blocks = columns(n)
        _gated[(tokens * blocks,)](*tensors, n, blocks, *(z.stride(0) for z in tensors), BACK=back, BLOCK=block)
