"""Dropout whose mask is a hash of counters: the same in forward and backward without being kept,
and the twin's bit for bit."""

from __future__ import annotations

import triton
import triton.language as tl

from .entry import Entry
from ..plain import threshold
from .shares import ceil_power

BLOCK = 2048


@triton.jit
def _mix(h):
    """murmur3's 32-bit finalizer (Appleby 2011), on uint32."""
    h = (h ^ (h >> 16)) * 0x85EBCA6B
    h = (h ^ (h >> 13)) * 0xC2B2AE35
    return h ^ (h >> 16)


@Entry
@triton.jit(do_not_specialize=["number", "limit"])
def _dropout(x, key, out, number, limit, factor, n, blocks, x_row, out_row, BLOCK: tl.constexpr):
    """Grid (row and block of columns). The hash is plain.keep_mask's."""
    row = tl.program_id(0) // blocks
    column = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    mask = column < n
    seed, step, micro = (tl.load(key + 0).to(tl.uint32), tl.load(key + 1).to(tl.uint32), tl.load(key + 2).to(tl.uint32))
    one = _mix(_mix(seed ^ 0x9E3779B9) ^ step)
    two = _mix(_mix(one ^ micro) ^ number.to(tl.uint32))
    index = row.to(tl.uint32) * tl.cast(n, tl.uint32) + column.to(tl.uint32)
    h = _mix(_mix(index ^ two) + one)
    keep = (h >> 8).to(tl.int32) >= limit
    at = row.to(tl.int64)
    value = tl.load(x + at * x_row + column, mask=mask, other=0).to(tl.float32)
    tl.store(out + at * out_row + column, tl.where(keep, value * factor, 0.0).to(out.dtype.element_ty), mask=mask)


def dropout(x, key, number, p, out):
    """See plain.dropout."""
    tokens, n = x.shape
    block = min(BLOCK, ceil_power(n))
    blocks = triton.cdiv(n, block)
    number = (number & 0xFFFFFFFF) - ((number & 0x80000000) << 1)  # as int32, whatever its size
    _dropout[(tokens * blocks,)](
        x,
        key,
        out,
        number,
        threshold(p),
        1.0 / (1.0 - p),
        n,
        blocks,
        x.stride(0),
        out.stride(0),
        BLOCK=block,
        num_warps=4,
    )
