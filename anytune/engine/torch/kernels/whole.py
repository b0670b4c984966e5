"""Optimizers of whole weights: clipping, AdamW and zeroing the gradient in one pass over a tensor.

The 8-bit codes of the moments are found as optimizers.py says: by a table over the number's upper bits, and one
comparison. Only numbers of magnitude 2^-24 to 1 need to be told apart there, so the table fits the processor's cache.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
import triton
import triton.language as tl

from .entry import Entry

from anytune.engine import optimizers as rules

UNIT = 1024  # weights of a program
BLOCK = rules.BLOCK
LEAST, MOST = 0x3380, 0x3F80  # upper halves of 2^-24 and 1 as float32
GUESSES = MOST - LEAST + 1
LEAST_, GUESSES_ = tl.constexpr(LEAST), tl.constexpr(GUESSES)


@triton.jit
def _move(p, slope, first, second, rate, keep, root, eps):
    """The new weight of AdamW's rule. rate: lr / (1 - beta1^step), root: (1 - beta2^step)^1/2, keep: 1 - lr decay."""
    return p * keep - rate * (first / (tl.sqrt_rn(second) / root + eps))


@Entry
@triton.jit
def _adamw(p, g, first, second, size, factor, rate, keep, beta1, beta2, root, eps, UNIT: tl.constexpr):
    """Grid (units)."""
    at = tl.program_id(0).to(tl.int64) * UNIT + tl.arange(0, UNIT)
    there = at < size
    slope = tl.load(g + at, mask=there, other=0) * factor
    m = beta1 * tl.load(first + at, mask=there, other=0) + (1 - beta1) * slope
    v = beta2 * tl.load(second + at, mask=there, other=0) + (1 - beta2) * slope * slope
    value = _move(tl.load(p + at, mask=there, other=0), slope, m, v, rate, keep, root, eps)
    tl.store(p + at, value, mask=there)
    tl.store(first + at, m, mask=there)
    tl.store(second + at, v, mask=there)
    tl.store(g + at, tl.zeros([UNIT], tl.float32), mask=there)


@triton.jit
def _encode(x, packed, scale, at, block, there, guess, middles, SIGNED: tl.constexpr):
    """x [ROWS, BLOCK] into codes and the largest magnitude of each row."""
    largest = tl.max(tl.abs(x), 1)
    unit = tl.div_rn(x, tl.where(largest > 0, largest, 1.0)[:, None])
    top = tl.minimum(tl.maximum((unit.to(tl.int32, bitcast=True) >> 16 & 0x7FFF) - LEAST_, 0), GUESSES_ - 1)
    if SIGNED:
        top += tl.where(unit < 0, GUESSES_, 0)
    code = tl.load(guess + top).to(tl.int32)
    code += (tl.load(middles + code) < unit).to(tl.int32)
    tl.store(packed + at, code.to(tl.uint8), mask=there)
    tl.store(scale + block, largest, mask=tl.max(there.to(tl.int32), 1) > 0)


@Entry
@triton.jit
def _adamw8bit(
    p,
    g,
    first,
    first_scale,
    second,
    second_scale,
    signed,
    unsigned,
    signed_guess,
    unsigned_guess,
    signed_middles,
    unsigned_middles,
    size,
    factor,
    rate,
    keep,
    beta1,
    beta2,
    root,
    eps,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (ROWS blocks). `second` holds codes of the second moment's root."""
    block = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    at = block[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    there, some = at < size, block * BLOCK < size
    slope = tl.load(g + at, mask=there, other=0) * factor
    m = (
        tl.load(signed + tl.load(first + at, mask=there, other=0).to(tl.int32))
        * tl.load(first_scale + block, mask=some, other=0)[:, None]
    )
    v = (
        tl.load(unsigned + tl.load(second + at, mask=there, other=0).to(tl.int32))
        * tl.load(second_scale + block, mask=some, other=0)[:, None]
    )
    m = tl.where(there, beta1 * m + (1 - beta1) * slope, 0.0)
    v = tl.where(there, beta2 * v * v + (1 - beta2) * slope * slope, 0.0)
    value = _move(tl.load(p + at, mask=there, other=0), slope, m, v, rate, keep, root, eps)
    tl.store(p + at, value, mask=there)
    tl.store(g + at, tl.zeros([ROWS, BLOCK], tl.float32), mask=there)
    _encode(m, first, first_scale, at, block, there, signed_guess, signed_middles, True)
    _encode(tl.sqrt_rn(v), second, second_scale, at, block, there, unsigned_guess, unsigned_middles, False)


@functools.cache
def _tables(device: torch.device) -> tuple[torch.Tensor, ...]:
    """(values, guesses, middles) of signed codes, then of unsigned ones, in the order of the kernel's arguments."""
    kinds = []
    for is_signed in (True, False):
        guess = rules.first_guess(is_signed)
        near = [guess[LEAST : MOST + 1], guess[0x8000 + LEAST : 0x8000 + MOST + 1]][: 1 + is_signed]
        kinds.append(
            (rules.codes(is_signed), np.concatenate(near), np.array([*rules.middles(is_signed), math.inf], np.float32))
        )
    return tuple(torch.from_numpy(table).to(device) for same in zip(*kinds) for table in same)


def whole_adamw(p, g, state: dict[str, torch.Tensor], rule: rules.Rule) -> None:
    """One step in place over float32 vectors; g is zeroed. state: two float32 moments, or their 8-bit codes."""
    numbers = (
        p.numel(),
        rule.factor,
        rule.lr / (1 - rule.beta1**rule.step),
        1 - rule.lr * rule.decay,
        rule.beta1,
        rule.beta2,
        math.sqrt(1 - rule.beta2**rule.step),
        rule.eps,
    )
    grid = (triton.cdiv(p.numel(), UNIT),)
    if "second" in state:
        _adamw[grid](p, g, state["first"], state["second"], *numbers, UNIT=UNIT, num_warps=4)
    else:
        _adamw8bit[grid](
            p,
            g,
            state["first"],
            state["first_scale"],
            state["root"],
            state["root_scale"],
            *_tables(p.device),
            *numbers,
            ROWS=UNIT // BLOCK,
            BLOCK=BLOCK,
            num_warps=4,
        )
