"""The gradients' norm, the decision to halt, and AdamW: three launches for all parameters."""

from __future__ import annotations

import triton
import triton.language as tl

from .entry import Entry
from ..plain_optimizer import UNIT, new_partials, piece_size
from .shares import ceil_power

BLOCK = 1024  # elements of an AdamW program


@Entry
@triton.jit
def _square_sum(g, partials, size, piece, BLOCK: tl.constexpr):
    """Grid (pieces). Sums in float64, lane by lane, so that nothing depends on how programs are scheduled."""
    number = tl.program_id(0)
    begin = number.to(tl.int64) * piece
    lane = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float64)
    for start in range(0, piece, BLOCK):  # a piece is whole blocks; the last pieces may lie behind the end
        x = tl.load(g + begin + start + lane, mask=begin + start + lane < size, other=0).to(tl.float64)
        total += x * x
    tl.store(partials + number, tl.sum(total, 0))


@Entry
@triton.jit
def _decide(hyper, partials, state, pieces, BLOCK: tl.constexpr):
    """One program: the norm, whether to halt, and the clipping factor, before anybody reads them."""
    lane = tl.arange(0, BLOCK)
    norm = tl.sqrt(tl.sum(tl.load(partials + lane, mask=lane < pieces, other=0), 0)).to(tl.float32)
    loss, halted, limit = tl.load(state + 2), tl.load(state + 1) != 0, tl.load(hyper + 8)
    # a comparison with NaN is false
    fine = (norm < float("inf")) & (tl.abs(loss) < float("inf"))
    tl.store(state, norm)
    tl.store(state + 1, tl.where(halted | (fine == 0), 1.0, 0.0))
    tl.store(state + 3, tl.where((limit > 0) & (norm > limit), limit / norm, 1.0))


@Entry
@triton.jit(do_not_specialize=["size_a"])
def _adamw(p, g, m, v, hyper, state, size, size_a, BLOCK: tl.constexpr):
    """Grid (blocks of elements)."""
    first = tl.program_id(0).to(tl.int64) * BLOCK
    lane = tl.arange(0, BLOCK)
    mask = lane < size - first
    if tl.load(state + 1) == 0:
        slope = tl.load(g + first + lane, mask=mask, other=0) * tl.load(state + 3)
        mean = tl.load(m + first + lane, mask=mask, other=0)
        square = tl.load(v + first + lane, mask=mask, other=0)
        value = tl.load(p + first + lane, mask=mask, other=0)
        rate = tl.where(lane < size_a - first, tl.load(hyper), tl.load(hyper + 1))
        correct1, correct2 = tl.load(hyper + 2), tl.load(hyper + 3)
        beta1, beta2, eps, decay = tl.load(hyper + 4), tl.load(hyper + 5), tl.load(hyper + 6), tl.load(hyper + 7)
        mean = beta1 * mean + (1 - beta1) * slope
        square = beta2 * square + (1 - beta2) * slope * slope
        update = (mean / correct1) / (tl.sqrt(square / correct2) + eps)
        tl.store(m + first + lane, mean, mask=mask)
        tl.store(v + first + lane, square, mask=mask)
        tl.store(p + first + lane, value * (1 - rate * decay) - rate * update, mask=mask)
    tl.store(g + first + lane, tl.zeros([BLOCK], tl.float32), mask=mask)


def square_sum(g, partials=None):
    """See plain_optimizer.square_sum."""
    partials = new_partials(g) if partials is None else partials
    _square_sum[(len(partials),)](g, partials, g.numel(), piece_size(g.numel(), len(partials)), BLOCK=UNIT, num_warps=8)
    return partials


def adamw(p, g, m, v, hyper, partials, state, size_a):
    """See plain_optimizer.adamw."""
    _decide[(1,)](hyper, partials, state, len(partials), BLOCK=ceil_power(len(partials)), num_warps=4)
    _adamw[(triton.cdiv(p.numel(), BLOCK),)](p, g, m, v, hyper, state, p.numel(), size_a, BLOCK=BLOCK, num_warps=4)
