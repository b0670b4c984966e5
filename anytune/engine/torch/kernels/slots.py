"""Rows of a mixture's slots in Triton: a token's row to its slots, the sum back, weighed gated products and gradients
of weighing; one pass over memory each. A slot is a token at one of its experts."""

from __future__ import annotations

import triton
import triton.language as tl

from .entry import Entry
from .glu_backward import columns, sigmoid
from .shares import ceil_power

WIDEST = 2048  # columns of a program
ROWS, COLUMNS = 4, 256  # of weigh_backward's tiles
WIDE = 1024  # columns at a time of a row whose gradients by its weight are summed


@Entry
@triton.jit
def _spread(x, place, out, n, x_row, out_row, USED: tl.constexpr, BLOCK: tl.constexpr):
    """Grid (tokens, blocks of columns)."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = column < n
    row = tl.load(x + token * x_row + column, mask=mask)
    for at in tl.static_range(USED):
        slot = tl.load(place + token * USED + at)
        tl.store(out + slot * out_row + column, row.to(out.dtype.element_ty), mask=mask)


@Entry
@triton.jit
def _collect(y, place, out, n, y_row, out_row, USED: tl.constexpr, BLOCK: tl.constexpr):
    """Grid (tokens, blocks of columns)."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = column < n
    total = tl.zeros([BLOCK], tl.float32)
    for at in tl.static_range(USED):
        slot = tl.load(place + token * USED + at)
        total += tl.load(y + slot * y_row + column, mask=mask, other=0).to(tl.float32)
    tl.store(out + token * out_row + column, total.to(out.dtype.element_ty), mask=mask)


@Entry
@triton.jit
def _weigh_backward(dy, x, weights, inner, slots, n, dy_row, x_row, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Grid (blocks of slots)."""
    slot = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside, at = slot < slots, slot.to(tl.int64)[:, None]
    weight = tl.load(weights + slot, mask=inside, other=0)[:, None]
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for begin in range(0, n, COLUMNS):
        column = begin + tl.arange(0, COLUMNS)[None, :]
        mask = inside[:, None] & (column < n)
        d = tl.load(dy + at * dy_row + column, mask=mask, other=0).to(tl.float32)
        total += d * tl.load(x + at * x_row + column, mask=mask, other=0).to(tl.float32)
        tl.store(dy + at * dy_row + column, (d * weight).to(dy.dtype.element_ty), mask=mask)
    tl.store(inner + slot, tl.sum(total, 1), mask=inside)


@Entry
@triton.jit
def _weighed(gate, up, weights, out, n, blocks, gate_row, up_row, out_row, GELU: tl.constexpr, BLOCK: tl.constexpr):
    """Grid (row and block of columns)."""
    row = (tl.program_id(0) // blocks).to(tl.int64)
    column = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    mask = column < n
    g = tl.load(gate + row * gate_row + column, mask=mask, other=0).to(tl.float32)
    u = tl.load(up + row * up_row + column, mask=mask, other=0).to(tl.float32)
    s, slope = sigmoid(g, GELU)
    value = g * s * u * tl.load(weights + row)
    tl.store(out + row * out_row + column, value.to(out.dtype.element_ty), mask=mask)


@Entry
@triton.jit
def _weighed_backward(dy, gate, up, weights, dgate, dup, inner, n, dy_row, gate_row, up_row, dgate_row, dup_row,
                      GELU: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """Grid (slots)."""
    row = tl.program_id(0).to(tl.int64)
    weight, total = tl.load(weights + row), tl.zeros([BLOCK], tl.float32)
    for begin in range(0, n, BLOCK):
        column = begin + tl.arange(0, BLOCK)
        mask = column < n
        d = tl.load(dy + row * dy_row + column, mask=mask, other=0).to(tl.float32)
        g = tl.load(gate + row * gate_row + column, mask=mask, other=0).to(tl.float32)
        u = tl.load(up + row * up_row + column, mask=mask, other=0).to(tl.float32)
        s, slope = sigmoid(g, GELU)
        total += d * g * s * u
        d = d * weight
        by_gate = d * u * (s + g * s * (1.0 - s) * slope)
        tl.store(dgate + row * dgate_row + column, by_gate.to(dgate.dtype.element_ty), mask=mask)
        tl.store(dup + row * dup_row + column, (d * g * s).to(dup.dtype.element_ty), mask=mask)
    tl.store(inner + row, tl.sum(total, 0))


def spread(x, place, out) -> None:
    """The Triton twin of plain_slots.spread."""
    _by_token(_spread, x, place, out, x.shape[1])


def collect(y, place, out) -> None:
    """The Triton twin of plain_slots.collect."""
    _by_token(_collect, y, place, out, y.shape[1])


def _by_token(kernel, source, place, out, n: int) -> None:
    (tokens, used), block = place.shape, min(WIDEST, ceil_power(n))
    if tokens:
        grid = tokens, triton.cdiv(n, block)
        kernel[grid](source, place, out, n, source.stride(0), out.stride(0), USED=used, BLOCK=block)


def weigh_backward(dy, x, weights, inner) -> None:
    """The Triton twin of plain_slots.weigh_backward."""
    slots, n = dy.shape
    if slots:
        grid = (triton.cdiv(slots, ROWS),)
        _weigh_backward[grid](
            dy, x, weights, inner, slots, n, dy.stride(0), x.stride(0), ROWS=ROWS, COLUMNS=COLUMNS, num_warps=4
        )


def weighed(gate, up, activation, weights, out) -> None:
    """The Triton twin of plain_slots.weighed."""
    (slots, n), (block, blocks) = gate.shape, columns(gate.shape[1])
    if slots:
        strides = (z.stride(0) for z in (gate, up, out))
        _weighed[(slots * blocks,)](gate, up, weights, out, n, blocks, *strides, GELU=activation == "gelu", BLOCK=block)


def weighed_backward(dy, gate, up, activation, weights, dgate, dup, inner) -> None:
    """The Triton twin of plain_slots.weighed_backward."""
    (slots, n), tensors = dy.shape, (dy, gate, up, dgate, dup)
    if slots:
        block, strides = min(WIDE, ceil_power(n)), (z.stride(0) for z in tensors)
        _weighed_backward[(slots,)](
            dy, gate, up, weights, dgate, dup, inner, n, *strides, GELU=activation == "gelu", BLOCK=block
        )
