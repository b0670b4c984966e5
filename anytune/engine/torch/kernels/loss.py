"""Cross-entropy of rows of logits, in place: one program a row, one pass for its sum and one for its gradient."""

from __future__ import annotations

import triton
import triton.language as tl

from .attention import saturated
from .entry import Entry

WIDTH = 4096  # columns that lie side by side over the threads
DEPTH = 4  # such runs at once: loads in flight, and one rescaling for all of them


@triton.jit
def capped(x, CAP: tl.constexpr):
    """CAP * tanh(x / CAP), or x without a cap."""
    if CAP != 0:
        x = CAP * saturated(x / CAP)
    return x


@Entry
@triton.jit
def _loss(
    logits,
    targets,
    scale,
    losses,
    columns,
    row_stride,
    CAP: tl.constexpr,
    GRADIENT: tl.constexpr,
    DEPTH: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Running maximum and sum (Milakov & Gimelshein 2018) in every lane, joined at the end. Grid (rows)."""
    row = tl.program_id(0)
    base = logits + row.to(tl.int64) * row_stride
    target = tl.load(targets + row)
    tile = tl.arange(0, DEPTH)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    if target >= 0:
        # read before the sums, whose barriers keep it before the gradient's writes
        picked = capped(tl.load(base + target).to(tl.float32), CAP)
        top = tl.full([WIDTH], -3.0e38, tl.float32)  # not -inf: a lane without columns must not make inf - inf
        total = tl.zeros([WIDTH], tl.float32)
        for start in range(0, columns, DEPTH * WIDTH):
            x = tl.load(base + start + tile, mask=start + tile < columns, other=float("-inf")).to(tl.float32)
            if CAP != 0:
                x = tl.where(start + tile < columns, capped(x, CAP), float("-inf"))
            new = tl.maximum(top, tl.max(x, 0))
            total = total * tl.exp(top - new) + tl.sum(tl.exp(x - new[None, :]), 0)
            top = new
        highest = tl.max(top, 0)
        log_sum = highest + tl.log(tl.sum(total * tl.exp(top - highest), 0))
        tl.store(losses + row, log_sum - picked)
        if GRADIENT:
            factor = tl.load(scale)
            for start in range(0, columns, DEPTH * WIDTH):
                mask = start + tile < columns
                x = tl.load(base + start + tile, mask=mask, other=float("-inf")).to(tl.float32)
                x = capped(x, CAP)
                p = tl.exp(x - log_sum) - tl.where(start + tile == target, 1.0, 0.0)
                if CAP != 0:
                    p = p * (1 - (x / CAP) * (x / CAP))
                tl.store(base + start + tile, (factor * p).to(logits.dtype.element_ty), mask=mask)
    else:
        tl.store(losses + row, 0.0)
        if GRADIENT:
            zero = tl.zeros([DEPTH, WIDTH], logits.dtype.element_ty)
            for start in range(0, columns, DEPTH * WIDTH):
                tl.store(base + start + tile, zero, mask=start + tile < columns)


def loss_rows(logits, targets, scale, losses, gradient, cap=0.0):
    """See plain.loss_rows."""
    rows, columns = logits.shape
    _loss[(rows,)](
        logits,
        targets,
        scale,
        losses,
        columns,
        logits.stride(0),
        CAP=float(cap),
        GRADIENT=bool(gradient),
        DEPTH=DEPTH,
        WIDTH=WIDTH,
        num_warps=max(1, WIDTH // 256),
    )
