"""The gated delta net from chunk to chunk in Triton: the one part that has an order, forward and backward.

A chunk in which an example ends lets nothing of the state before it through: there the chain is cut. Chunks are dealt
out in segments of SPAN; the program of a segment walks from the first cut in it to the first cut of a later segment,
so that examples run side by side, whatever their lengths, without the host knowing them. The chunk that a program
begins at is another's to write. What is summed, and in which order, does not depend on where programs begin.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .delta_chunk import places
from .entry import Entry

SPAN = 16  # chunks of a segment


@triton.jit
def cuts(first, tokens, chunks, C: tl.constexpr, CHUNKS: tl.constexpr):
    """(numbers [CHUNKS], whether nothing of a state passes through the chunk of that number)."""
    number = tl.arange(0, CHUNKS)
    last = tl.minimum(number * C + C, tokens) - 1
    begins = tl.load(first + last, mask=number < chunks, other=-2147483647)
    return number, (number < chunks) & (begins >= number * C)


@triton.jit
def tile(base, chunk, head, column, VALUES: tl.constexpr, VALUE: tl.constexpr, KEY_PAD: tl.constexpr, BV: tl.constexpr,
         KEY: tl.constexpr):  # fmt: skip
    """Pointers [KEY_PAD, BV] into states [chunks, values, KEY, VALUE]."""
    rows, columns = tl.arange(0, KEY_PAD)[:, None], column + tl.arange(0, BV)[None, :]
    return base + (tl.cast(chunk, tl.int64) * VALUES + head) * KEY * VALUE + (rows * VALUE + columns)


@Entry
@triton.jit
def walk(
    erases,
    fresh,
    written,
    kept,
    first,
    before,
    states,
    u,
    behind,
    tokens,
    chunks,
    VALUES: tl.constexpr,
    KEY: tl.constexpr,
    KEY_PAD: tl.constexpr,
    VALUE: tl.constexpr,
    BV: tl.constexpr,
    C: tl.constexpr,
    CHUNKS: tl.constexpr,
    SPAN: tl.constexpr,
    PRECISION: tl.constexpr,
    GOES_ON: tl.constexpr,
):
    """Grid (columns / BV, values, segments). Writes states [chunks, values, KEY, VALUE] before each chunk and the
    writes u like fresh; with GOES_ON the first one is `before`, and that behind all is written to `behind`."""
    column, head, segment = tl.program_id(0) * BV, tl.program_id(1), tl.program_id(2)
    half: tl.constexpr = fresh.dtype.element_ty
    number, cut = cuts(first, tokens, chunks, C, CHUNKS)
    low, high = segment * SPAN, segment * SPAN + SPAN
    begin = tl.min(tl.where(cut & (number >= low) & (number < high), number, CHUNKS), 0)
    if segment == 0:
        begin = 0
    if begin < CHUNKS:
        stop = tl.min(tl.where(cut & (number >= high), number, chunks - 1), 0)
        keys, columns = tl.arange(0, KEY_PAD), column + tl.arange(0, BV)
        deep, wide = (keys < KEY)[None, :], (columns < VALUE)[None, :]
        square = (keys < KEY)[:, None] & wide
        state = tl.zeros([KEY_PAD, BV], tl.float32)
        if GOES_ON:
            if segment == 0:
                state = tl.load(tile(before, 0, head, column, VALUES, VALUE, KEY_PAD, BV, KEY), mask=square, other=0.0)
        for n in tl.range(begin, stop + 1):
            mine = (n > begin) | (segment == 0)
            at = places(0, n * C, head, VALUES, keys, C, KEY)
            there = places(0, n * C, head, VALUES, columns, C, VALUE)
            erase = tl.load(erases + at, mask=deep, other=0.0)
            write = tl.load(written + at, mask=deep, other=0.0)
            new = tl.load(fresh + there, mask=wide, other=0.0)
            passes = tl.load(kept + n * VALUES + head)
            held = state.to(half)
            tl.store(tile(states, n, head, column, VALUES, VALUE, KEY_PAD, BV, KEY), held, mask=square & mine)
            made = (new.to(tl.float32) - tl.dot(erase, held, input_precision=PRECISION)).to(half)
            tl.store(u + there, made, mask=wide & mine)
            state = tl.dot(tl.trans(write), made, state * passes, input_precision=PRECISION)
        if GOES_ON:
            if stop == chunks - 1:
                tl.store(tile(behind, 0, head, column, VALUES, VALUE, KEY_PAD, BV, KEY), state, mask=square)


@Entry
@triton.jit
def walk_back(
    erases,
    written,
    read,
    kept,
    do,
    local,
    first,
    after,
    du,
    tokens,
    chunks,
    VALUES: tl.constexpr,
    KEY: tl.constexpr,
    KEY_PAD: tl.constexpr,
    VALUE: tl.constexpr,
    BV: tl.constexpr,
    C: tl.constexpr,
    CHUNKS: tl.constexpr,
    SPAN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Grid as walk's, backwards: `after`, the gradient of the state behind each chunk, and du, that of the writes, of
    which `local` is what their own chunk's results give."""
    column, head, segment = tl.program_id(0) * BV, tl.program_id(1), tl.program_id(2)
    half: tl.constexpr = local.dtype.element_ty
    number, cut = cuts(first, tokens, chunks, C, CHUNKS)
    low, high = segment * SPAN, segment * SPAN + SPAN
    final = segment == tl.num_programs(2) - 1
    begin = tl.max(tl.where(cut & (number >= low) & (number < high), number, -1), 0)
    if final:
        begin = chunks - 1
    if begin >= 0:
        stop = tl.max(tl.where(cut & (number < low), number, 0), 0)
        keys, columns = tl.arange(0, KEY_PAD), column + tl.arange(0, BV)
        deep, wide = (keys < KEY)[None, :], (columns < VALUE)[None, :]
        square = (keys < KEY)[:, None] & wide
        grad = tl.zeros([KEY_PAD, BV], tl.float32)
        for step in tl.range(0, begin - stop + 1):
            n = begin - step
            mine = (step > 0) | final
            at = places(0, n * C, head, VALUES, keys, C, KEY)
            there = places(0, n * C, head, VALUES, columns, C, VALUE)
            write = tl.load(written + at, mask=deep, other=0.0)
            own = tl.load(local + there, mask=wide, other=0.0)
            erase = tl.load(erases + at, mask=deep, other=0.0)
            reads = tl.load(read + at, mask=deep, other=0.0)
            given = tl.load(do + there, mask=wide, other=0.0)
            passes = tl.load(kept + n * VALUES + head)
            held = grad.to(half)
            tl.store(tile(after, n, head, column, VALUES, VALUE, KEY_PAD, BV, KEY), held, mask=square & mine)
            made = (own.to(tl.float32) + tl.dot(write, held, input_precision=PRECISION)).to(half)
            tl.store(du + there, made, mask=wide & mine)
            grad = tl.dot(tl.trans(reads), given, grad * passes, input_precision=PRECISION)
            grad -= tl.dot(tl.trans(erase), made, input_precision=PRECISION)
