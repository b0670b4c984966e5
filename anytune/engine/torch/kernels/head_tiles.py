"""Heads of one or a few tokens as tiles, for kernels that norm and rotate them.

A program holds three: the first and the second elements of the rotated pairs, and the elements that are not rotated
(often none).
"""

from __future__ import annotations

import triton
import triton.language as tl

from .shares import ceil_power

ELEMENTS = 2048  # of q or k in a program


@triton.jit
def read_heads(
    x, row, there, SIZE: tl.constexpr, PAIRS: tl.constexpr, NEOX: tl.constexpr, P: tl.constexpr, REST: tl.constexpr
):
    """The three tiles of heads that begin at x + row [ROWS, 1], float32 [ROWS, P], [ROWS, P], [ROWS, REST]."""
    i = tl.arange(0, P)[None, :]
    if NEOX:
        one = tl.load(x + row + i, mask=there & (i < PAIRS), other=0).to(tl.float32)
        two = tl.load(x + row + PAIRS + i, mask=there & (i < PAIRS), other=0).to(tl.float32)
    else:  # neighbours are read as they lie, then told apart
        both = tl.arange(0, 2 * P)[None, :]
        values = tl.load(x + row + both, mask=there & (both < 2 * PAIRS), other=0).to(tl.float32)
        one, two = tl.split(tl.reshape(values, [values.shape[0], P, 2]))
    last = 2 * PAIRS + tl.arange(0, REST)[None, :]
    return one, two, tl.load(x + row + last, mask=there & (last < SIZE), other=0).to(tl.float32)


@triton.jit
def write_heads(
    x,
    row,
    there,
    one,
    two,
    rest,
    SIZE: tl.constexpr,
    PAIRS: tl.constexpr,
    NEOX: tl.constexpr,
    P: tl.constexpr,
    REST: tl.constexpr,
):
    kind = x.dtype.element_ty
    i = tl.arange(0, P)[None, :]
    if NEOX:
        tl.store(x + row + i, one.to(kind), mask=there & (i < PAIRS))
        tl.store(x + row + PAIRS + i, two.to(kind), mask=there & (i < PAIRS))
    else:
        both = tl.arange(0, 2 * P)[None, :]
        values = tl.reshape(tl.join(one, two), [one.shape[0], 2 * P])
        tl.store(x + row + both, values.to(kind), mask=there & (both < 2 * PAIRS))
    last = 2 * PAIRS + tl.arange(0, REST)[None, :]
    tl.store(x + row + last, rest.to(kind), mask=there & (last < SIZE))


@triton.jit
def read_gains(gain, SIZE: tl.constexpr, PAIRS: tl.constexpr, NEOX: tl.constexpr, P: tl.constexpr, REST: tl.constexpr):
    """The gain as three tiles of one row."""
    i = tl.arange(0, P)[None, :]
    first, second = (i, PAIRS + i) if NEOX else (2 * i, 2 * i + 1)
    last = 2 * PAIRS + tl.arange(0, REST)[None, :]
    return (
        tl.load(gain + first, mask=i < PAIRS, other=0),
        tl.load(gain + second, mask=i < PAIRS, other=0),
        tl.load(gain + last, mask=last < SIZE, other=0),
    )


@triton.jit
def read_angles(
    cos,
    sin,
    positions,
    part,
    blocks,
    tokens,
    there,
    HEADS: tl.constexpr,
    TOKENS: tl.constexpr,
    PAIRS: tl.constexpr,
    P: tl.constexpr,
):
    """cos and sin of the rows' tokens, [ROWS, P]."""
    i = tl.arange(0, P)[None, :]
    # one axis: each thread loads a position once
    token = part // blocks * TOKENS + tl.arange(0, TOKENS * HEADS) // HEADS
    position = tl.load(positions + token, mask=token < tokens, other=0)
    at = position.to(tl.int64)[:, None] * PAIRS + i
    return tl.load(cos + at, mask=there & (i < PAIRS), other=0), tl.load(sin + at, mask=there & (i < PAIRS), other=0)


@triton.jit
def sum_heads(one, two, rest):
    """Over each head: [ROWS, 1]."""
    return tl.sum(one, 1, keep_dims=True) + tl.sum(two, 1, keep_dims=True) + tl.sum(rest, 1, keep_dims=True)


@triton.jit
def rows_of(part, tokens, blocks, COUNT: tl.constexpr, HEADS: tl.constexpr, TOKENS: tl.constexpr):
    """Of a program: token and head of its rows [TOKENS * HEADS, 1], and which exist."""
    row = tl.arange(0, TOKENS * HEADS)[:, None]
    token = part // blocks * TOKENS + row // HEADS
    head = part % blocks * HEADS + row % HEADS
    return token, head, (token < tokens) & (head < COUNT)


@triton.jit
def cache_row(slots, positions, context, token, tokens):
    """The row of a cache [slots * context, width] that is a token's."""
    there = token < tokens
    slot = tl.load(slots + token, mask=there, other=0).to(tl.int64)
    return slot * context + tl.load(positions + token, mask=there, other=0)


def programs_of(tokens: int, heads: int, n_kv_heads: int, size: int, pairs: int, gains: bool, neox: bool):
    """-> (programs of q, all programs, the kernels' constants)."""
    constants, programs, rows = {}, [], max(1, ELEMENTS // ceil_power(size))
    for name, count in (("Q", heads), ("K", n_kv_heads)):
        many = min(ceil_power(count), rows)
        each = rows // many
        constants |= {f"{name}_COUNT": count, f"{name}_HEADS": many, f"{name}_TOKENS": each}
        programs.append(triton.cdiv(tokens, each) * triton.cdiv(count, many))
    constants |= dict(
        GAINS=gains,
        SIZE=size,
        PAIRS=pairs,
        NEOX=bool(neox),
        P=ceil_power(pairs),
        REST=ceil_power(max(1, size - 2 * pairs)),
        num_warps=4,
    )
    return programs[0], sum(programs), constants
