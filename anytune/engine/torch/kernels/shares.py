"""Sums over programs that divide one long axis between them, without a second launch.

Each program leaves its float32 partial sum in memory and counts itself in; whoever finds that it is the last adds all
of them, always in the same order. Counters are zero between launches: the last program puts its own back. Launches on
one stream do not overlap, so one tensor of counters serves all of a stream.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .rounding import eighth

COUNTERS = 4096  # row blocks, or tiles, that may be shared at a time
_counters: dict[tuple[torch.device, int], torch.Tensor] = {}


def counters(device) -> torch.Tensor:
    """int32, zeros, of the stream that is current. Made at its first use, which is never within a recording: what is
    recorded on a stream has run on it before."""
    key = device, torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    if key not in _counters:
        _counters[key] = torch.zeros(COUNTERS, dtype=torch.int32, device=device)
    return _counters[key]


def ceil_power(n: int) -> int:
    """The least power of two that is not below n."""
    return 1 << max(0, n - 1).bit_length()


def share(length: int, others: int, step: int, least: int, programs: int) -> tuple[int, int]:
    """(shares, length of a share, a multiple of step) of an axis, so that others * shares is at most `programs`."""
    shares = max(1, min(length // least, programs // others)) if others <= COUNTERS else 1
    span = triton.cdiv(triton.cdiv(length, shares), step) * step
    return triton.cdiv(length, span), span


def partials(shares: int, blocks: int, elements: int, out: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(parts, counters) for a kernel with so many row blocks of so many elements of its result."""
    if shares == 1:
        return out, out  # neither is touched
    return torch.empty(shares * blocks * elements, dtype=torch.float32, device=out.device), counters(out.device)


@triton.jit
def deposit(total, parts, counter, block, number, shares):
    """Leave `total` [N, M] as share `number` of a block; -> whether all others are there."""
    N: tl.constexpr = total.shape[0]
    M: tl.constexpr = total.shape[1]
    place = parts + (tl.cast(block, tl.int64) * shares + number) * (N * M)
    tl.store(place + tl.arange(0, N)[:, None] * M + tl.arange(0, M)[None, :], total)
    tl.debug_barrier()  # all of this program's threads have written before one of them says so
    last = tl.atomic_add(counter + block, 1, sem="acq_rel") == shares - 1
    if last:
        tl.store(counter + block, 0)
    return last


@triton.jit
def collect(parts, block, shares, N: tl.constexpr, M: tl.constexpr, SHARES: tl.constexpr):
    """The sum of a block's shares, at most SHARES, first to last."""
    place = parts + tl.cast(block, tl.int64) * shares * (N * M)
    element = tl.arange(0, N)[:, None] * M + tl.arange(0, M)[None, :]
    total = tl.zeros([N, M], tl.float32)
    for number in tl.static_range(SHARES):
        there = (element >= 0) & (number < shares)
        total += tl.load(place + number * (N * M) + element, mask=there, other=0, cache_modifier=".cg")
    return total


@triton.jit
def _put(total, out, keep, row, tokens, rank, out_row, keep_row, KEEP: tl.constexpr, scales, SCALED: tl.constexpr):
    j = tl.arange(0, total.shape[1])[None, :]
    mask, at = (row < tokens)[:, None] & (j < rank), row.to(tl.int64)[:, None]
    if SCALED:
        tl.store(keep + at * keep_row + j, eighth(total), mask=mask)
        total *= tl.load(scales + row, mask=row < tokens, other=0)[:, None]
    tl.store(out + at * out_row + j, total.to(out.dtype.element_ty), mask=mask)
    if KEEP and not SCALED:
        tl.store(keep + at * keep_row + j, total.to(keep.dtype.element_ty), mask=mask)


@triton.jit
def finish(
    total,
    parts,
    counter,
    block,
    number,
    shares,
    out,
    keep,
    row,
    tokens,
    rank,
    out_row,
    keep_row,
    SHARES: tl.constexpr,
    KEEP: tl.constexpr,
    scales=None,
    SCALED: tl.constexpr = False,
):
    """Write rows `row` of a skinny product [T, rank] to out (and keep), from this program's share of the sum. SCALED:
    keep gets it in e4m3, and out times the row's scale."""
    if SHARES == 1:
        _put(total, out, keep, row, tokens, rank, out_row, keep_row, KEEP, scales, SCALED)
    else:
        if deposit(total, parts, counter, block, number, shares):
            whole = collect(parts, block, shares, total.shape[0], total.shape[1], SHARES)
            _put(whole, out, keep, row, tokens, rank, out_row, keep_row, KEEP, scales, SCALED)


def fit(block: int, rows: int, size: int, stages: int, most: int = 98304) -> int:
    """The block, halved until tiles of so many rows of it, `stages` at a time, leave room in shared memory."""
    while block > 16 and block * rows * size * stages > most:
        block //= 2
    return block
