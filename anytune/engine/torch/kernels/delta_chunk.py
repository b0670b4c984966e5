"""What the gated delta net's Triton kernels share: a chunk of one head, its decays, and the factors of its recurrence.

numpy/chunk.py has the recurrence and its form within a chunk, chunks.py the same in plain torch, with the names used
here. A program has a chunk of C tokens of one value head. Arrays of factors are [chunks * C, values, size], and their
rows past the stream's end are those of tokens that write nothing and decay nothing. Where activations are bfloat16 the
factors are too; sums and what is exponentiated are float32.
"""

from __future__ import annotations

import triton
import triton.language as tl
from .entry import Entry


@triton.jit
def places(base, begin, head, heads, columns, C: tl.constexpr, SIZE: tl.constexpr):
    """Pointers [C, columns] into [T, heads, SIZE], tokens begin…"""
    local = tl.arange(0, C)[:, None]
    return base + (tl.cast(begin, tl.int64) * heads + head) * SIZE + (local * heads * SIZE + columns[None, :])


@triton.jit
def rows_of(source, begin, column, row, tokens, C: tl.constexpr, SIZE: tl.constexpr, PAD: tl.constexpr):
    """float32 [C, PAD]: SIZE columns from `column` on of tokens begin…; zero where there is none."""
    local, columns = tl.arange(0, C)[:, None], tl.arange(0, PAD)[None, :]
    there = (begin + local < tokens) & (columns < SIZE)
    at = source + tl.cast(begin, tl.int64) * row + column + (local * row + columns)
    return tl.load(at, mask=there, other=0.0).to(tl.float32)


@triton.jit
def unit(x, eps):
    """(rows over their lengths, 1 / these), lengths being eps at least."""
    inverse = 1 / tl.maximum(tl.sqrt(tl.sum(x * x, 1)), eps)
    return x * inverse[:, None], inverse


@triton.jit
def softplus(x):
    return tl.maximum(x, 0.0) + tl.log(1 + tl.exp(-tl.abs(x)))


@triton.jit
def per_token(source, begin, head, row, tokens, C: tl.constexpr):
    """float32 [C]: a number of one head of each token; zero past the end."""
    rows = begin + tl.arange(0, C)
    return tl.load(source + tl.cast(rows, tl.int64) * row + head, mask=rows < tokens, other=0.0).to(tl.float32)


@triton.jit
def decays(alpha, a, bias, first, begin, head, alpha_row, tokens, C: tl.constexpr):
    """(sees bool [C, C], decay [C, C], carried [C], last [C], kept): how much of each token's write the others see, of
    the state before the chunk each token sees, and of both the state behind the chunk holds."""
    local = tl.arange(0, C)
    rows = begin + local
    shifted = per_token(alpha, begin, head, alpha_row, tokens, C) + tl.load(bias + head)
    g = tl.where(rows < tokens, tl.load(a + head) * softplus(shifted), 0.0)
    start = tl.load(first + tl.minimum(rows, tokens - 1))
    ends = tl.load(first + tl.minimum(begin + C, tokens) - 1)
    sees = (start[:, None] == start[None, :]) & (local[:, None] >= local[None, :])
    total = tl.sum(tl.where(sees, g[None, :], 0.0), 1)
    whole = tl.sum(tl.where(start == ends, g, 0.0), 0)
    decay = tl.exp(tl.where(sees, total[:, None] - total[None, :], float("-inf")))
    carried = tl.where(start < begin, tl.exp(total), 0.0)
    last = tl.where(start == ends, tl.exp(whole - total), 0.0)
    return sees, decay, carried, last, tl.where(ends < begin, tl.exp(whole), 0.0)


@triton.jit
def unit_inverse(lower, C: tl.constexpr, PRECISION: tl.constexpr):
    """The inverse of I + the part of `lower` below the diagonal [C, C], by blocks from the diagonal on."""
    i, j = tl.arange(0, C)[:, None], tl.arange(0, C)[None, :]
    made = tl.where(i == j, 1.0, 0.0) - tl.where((i // 2 == j // 2) & (i > j), lower, 0.0)
    for level in tl.static_range(1, 6):
        if (1 << level) < C:
            below = (i >> (level + 1) == j >> (level + 1)) & (i >> level > j >> level)
            below = tl.dot(tl.where(below, lower, 0.0), made, input_precision=PRECISION)
            made -= tl.dot(made, below, input_precision=PRECISION)
    return made


@Entry
@triton.jit
def invert(
    x,
    beta,
    alpha,
    a,
    bias,
    first,
    inverse,
    kept,
    tokens,
    x_row,
    beta_row,
    alpha_row,
    eps,
    KEYS: tl.constexpr,
    VALUES: tl.constexpr,
    KEY: tl.constexpr,
    KEY_PAD: tl.constexpr,
    C: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Grid (values, chunks). Writes inverse [chunks, values, C, C], of the system that the writes of a chunk solve, and
    kept float32 [chunks, values]."""
    head, chunk, local = tl.program_id(0), tl.program_id(1), tl.arange(0, C)
    half: tl.constexpr = inverse.dtype.element_ty
    column = (KEYS + head % KEYS) * KEY
    k, _ = unit(rows_of(x, chunk * C, column, x_row, tokens, C, KEY, KEY_PAD), eps)
    k = k.to(half)
    inner = tl.dot(k, tl.trans(k), input_precision=PRECISION)
    _, decay, _, _, keeps = decays(alpha, a, bias, first, chunk * C, head, alpha_row, tokens, C)
    strength = tl.sigmoid(per_token(beta, chunk * C, head, beta_row, tokens, C))
    solved = unit_inverse(strength[:, None] * decay * inner, C, PRECISION)
    at = (tl.cast(chunk, tl.int64) * VALUES + head) * C * C + (local[:, None] * C + local[None, :])
    tl.store(inverse + at, solved.to(half))
    tl.store(kept + chunk * VALUES + head, keeps)


@Entry
@triton.jit
def factors(
    x,
    beta,
    alpha,
    a,
    bias,
    first,
    inverse,
    erases,
    fresh,
    written,
    read,
    tokens,
    x_row,
    beta_row,
    alpha_row,
    eps,
    scale,
    KEYS: tl.constexpr,
    VALUES: tl.constexpr,
    KEY: tl.constexpr,
    KEY_PAD: tl.constexpr,
    VALUE: tl.constexpr,
    VALUE_PAD: tl.constexpr,
    C: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Grid (values, chunks): the rest of a chunk that does not depend on the state before it. Writes erases, written,
    read [chunks * C, values, KEY] and fresh likewise of VALUE."""
    head, chunk = tl.program_id(0), tl.program_id(1)
    begin, key_head = chunk * C, head % KEYS
    half: tl.constexpr = erases.dtype.element_ty
    local, columns, wide = tl.arange(0, C), tl.arange(0, KEY_PAD), tl.arange(0, VALUE_PAD)
    solved = (tl.cast(chunk, tl.int64) * VALUES + head) * C * C + (local[:, None] * C + local[None, :])
    solved = tl.load(inverse + solved)
    strength = tl.sigmoid(per_token(beta, begin, head, beta_row, tokens, C))
    v = rows_of(x, begin, 2 * KEYS * KEY + head * VALUE, x_row, tokens, C, VALUE, VALUE_PAD)
    made = tl.dot(solved, (strength[:, None] * v).to(half), input_precision=PRECISION)
    tl.store(places(fresh, begin, head, VALUES, wide, C, VALUE), made.to(half), mask=(wide < VALUE)[None, :])
    _, _, carried, last, _ = decays(alpha, a, bias, first, begin, head, alpha_row, tokens, C)
    exists = (columns < KEY)[None, :]
    at = places(0, begin, head, VALUES, columns, C, KEY)
    k, _ = unit(rows_of(x, begin, (KEYS + key_head) * KEY, x_row, tokens, C, KEY, KEY_PAD), eps)
    tl.store(written + at, (last[:, None] * k).to(half), mask=exists)
    erase = tl.dot(solved, ((strength * carried)[:, None] * k).to(half), input_precision=PRECISION)
    tl.store(erases + at, erase.to(half), mask=exists)
    q, _ = unit(rows_of(x, begin, key_head * KEY, x_row, tokens, C, KEY, KEY_PAD), eps)
    tl.store(read + at, ((carried * scale)[:, None] * q).to(half), mask=exists)
