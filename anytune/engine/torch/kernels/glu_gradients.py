"""Backward of a gated product for many tokens, with the gradients of the pairs on both sides of it in the same pass.

What lies between gate, up and down is the widest part of a layer. A program owns some columns of it and walks over
rows, so that the products whose sums run over rows (A of the linear behind, B of the two before) cost no reading of
their own.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .entry import Entry
from .glu_backward import sigmoid
from .rounding import SMALLEST, eighth
from .shares import ceil_power, collect, counters, deposit, share

MOST = 32  # ranks of each pair that programs hold
CONFIG = dict(ROWS=32, BLOCK=64, SHARE=512, PROGRAMS=1056, WARPS=4, STAGES=2)


@Entry
@triton.jit(do_not_specialize=["tokens", "span", "shares"])
def _backward(
    dy,
    gate,
    up,
    dgate,
    dup,
    low_dy,
    low_x,
    grad_a,
    grad_gate,
    grad_up,
    parts,
    counter,
    tokens,
    n,
    span,
    shares,
    factor,
    norms,
    peaks,
    number,
    scales,
    dy_row,
    gate_row,
    up_row,
    dgate_row,
    dup_row,
    low_dy_row,
    low_x_row,
    RANK: tl.constexpr,
    RANK_GATE: tl.constexpr,
    RANK_UP: tl.constexpr,
    UP_AT: tl.constexpr,
    EIGHT: tl.constexpr,
    GELU: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    RANKS: tl.constexpr,
    SHARES: tl.constexpr,
):
    """Grid (column blocks, shares of the rows)."""
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    here, j = column < n, tl.arange(0, RANKS)
    begin = tl.program_id(1) * span
    end = tl.minimum(begin + span, tokens)
    of_a = tl.zeros([RANKS, BLOCK], tl.float32)
    of_gate = tl.zeros([RANKS, BLOCK], tl.float32)
    of_up = tl.zeros([RANKS, BLOCK], tl.float32)
    for start in range(begin, end, ROWS):
        row = start + tl.arange(0, ROWS)
        inside, at = (row < end)[:, None], row.to(tl.int64)[:, None]
        mask = inside & here[None, :]
        g = tl.load(gate + at * gate_row + column[None, :], mask=mask, other=0).to(tl.float32)
        u = tl.load(up + at * up_row + column[None, :], mask=mask, other=0).to(tl.float32)
        d = tl.load(dy + at * dy_row + column[None, :], mask=mask, other=0).to(tl.float32)
        behind = tl.load(low_dy + at * low_dy_row + j[None, :], mask=inside & (j < RANK)[None, :], other=0)
        first = tl.load(low_x + at * low_x_row + j[None, :], mask=inside & (j < RANK_GATE)[None, :], other=0)
        second = tl.load(low_x + at * low_x_row + (UP_AT + j)[None, :], mask=inside & (j < RANK_UP)[None, :], other=0)
        s, slope = sigmoid(g, GELU)
        value = g * s
        to_gate = (d * u * (s + value * (1.0 - s) * slope)).to(dy.dtype.element_ty)
        to_up = (d * value).to(dy.dtype.element_ty)
        if EIGHT:
            there = row < end
            scale = tl.maximum(
                tl.load(norms + row, mask=there, other=1) * tl.load(peaks + row, mask=there, other=1) * number, SMALLEST
            )
            tl.store(scales + row, scale, mask=there & (tl.program_id(0) == 0))
            one = 1.0 / scale[:, None]
            tl.store(dgate + at * dgate_row + column[None, :], eighth(to_gate.to(tl.float32) * one), mask=mask)
            tl.store(dup + at * dup_row + column[None, :], eighth(to_up.to(tl.float32) * one), mask=mask)
        else:
            tl.store(dgate + at * dgate_row + column[None, :], to_gate, mask=mask)
            tl.store(dup + at * dup_row + column[None, :], to_up, mask=mask)
        of_a = tl.dot(tl.trans(behind), (value * u).to(behind.dtype), of_a, input_precision="tf32x3")
        of_gate = tl.dot(tl.trans(first), to_gate, of_gate, input_precision="tf32x3")
        of_up = tl.dot(tl.trans(second), to_up, of_up, input_precision="tf32x3")
    last = True
    block, number = tl.program_id(0), tl.program_id(1)
    if SHARES > 1:
        each = tl.cast(tl.num_programs(0), tl.int64) * shares * (RANKS * BLOCK)
        place = parts + (tl.cast(block, tl.int64) * shares + number) * (RANKS * BLOCK)
        element = tl.arange(0, RANKS)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
        tl.store(place + element, of_a)
        tl.store(place + each + element, of_gate)
        last = deposit(of_up, parts + 2 * each, counter, block, number, shares)
        if last:
            of_a = collect(parts, block, shares, RANKS, BLOCK, SHARES)
            of_gate = collect(parts + each, block, shares, RANKS, BLOCK, SHARES)
            of_up = collect(parts + 2 * each, block, shares, RANKS, BLOCK, SHARES)
    if last:
        k, c = j[:, None], column[None, :].to(tl.int64)
        where, mask = grad_a + k.to(tl.int64) * n + c, (k < RANK) & here[None, :]
        tl.store(where, tl.load(where, mask=mask, other=0) + of_a * factor, mask=mask)
        where, mask = grad_gate + c * RANK_GATE + k, (k < RANK_GATE) & here[None, :]
        tl.store(where, tl.load(where, mask=mask, other=0) + of_gate, mask=mask)
        where, mask = grad_up + c * RANK_UP + k, (k < RANK_UP) & here[None, :]
        tl.store(where, tl.load(where, mask=mask, other=0) + of_up, mask=mask)


def glu_gradients(
    dy, gate, up, activation, dgate, dup, low_dy, low_x, grad_a, grad_gate, grad_up, factor, *, bound=None, scale=None
):
    """See plain.glu_gradients."""
    (tokens, n), c, size = gate.shape, CONFIG, dy.element_size()
    norms, peaks, number = bound or (grad_a, grad_a, 0.0)
    ranks = max(16, *(ceil_power(r) for r in (grad_a.shape[0], grad_gate.shape[1], grad_up.shape[1])))
    block, rows = (c["BLOCK"], c["ROWS"]) if size == 2 else (32, 32)
    blocks = triton.cdiv(n, block)
    shares, span = share(tokens, blocks, rows, c["SHARE"], c["PROGRAMS"])
    parts, counter = grad_a, grad_a
    if shares > 1:
        parts = torch.empty(3 * shares * blocks * ranks * block, dtype=torch.float32, device=dy.device)
        counter = counters(dy.device)
    _backward[(blocks, shares)](
        dy,
        gate,
        up,
        dgate,
        dup,
        low_dy,
        low_x,
        grad_a,
        grad_gate,
        grad_up,
        parts,
        counter,
        tokens,
        n,
        span,
        shares,
        factor,
        norms,
        peaks,
        number,
        grad_a if scale is None else scale,
        *(t.stride(0) for t in (dy, gate, up, dgate, dup, low_dy, low_x)),
        RANK=grad_a.shape[0],
        RANK_GATE=grad_gate.shape[1],
        RANK_UP=grad_up.shape[1],
        UP_AT=grad_gate.shape[1],
        EIGHT=bound is not None,
        GELU=activation == "gelu",
        ROWS=rows,
        BLOCK=block,
        RANKS=ranks,
        SHARES=ceil_power(shares),
        num_warps=c["WARPS"],
        num_stages=c["STAGES"],
    )
