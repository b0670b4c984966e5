"""Attention of one new token a sequence against its cache, in Triton, the context split over programs (flash-decoding).

One query row reads all keys and values once, so the work is reading; few sequences would leave most of the card idle
if each were one program. The keys that a row sees are cut into equal parts, one a program (for all query heads of a
key head together); a second kernel joins the parts in their order. Grids depend on shapes alone, so that a recorded
graph serves any lengths; programs without keys leave at once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from anytune.engine.base import Heads

from .attention import LOG2E, padded, saturated
from .entry import Entry
from .overlap import overlap, settle

STEP = 8192  # elements of a step of keys; a quarter of it in float32
PROGRAMS = 528  # programs that keep the card's memory busy
PARTS = 64  # at most this many parts of a context


@triton.jit
def bounds(length, parts, WINDOW: tl.constexpr, KEYS: tl.constexpr):
    """(first key that is seen, keys of a part): parts are whole steps, the last ones may be empty."""
    near = 0
    if WINDOW:
        near = tl.maximum(length - WINDOW, 0)
    return near, tl.cdiv(tl.cdiv(length - near, parts), KEYS) * KEYS


@Entry
@triton.jit
def attend_part(
    q,
    keys,
    values,
    slots,
    lengths,
    mixes,
    lse,
    q_row,
    key_slot,
    key_row,
    value_slot,
    value_row,
    scale,
    parts,
    GROUP: tl.constexpr,
    SIZE: tl.constexpr,
    PAD: tl.constexpr,
    WINDOW: tl.constexpr,
    CAP: tl.constexpr,
    UNIT: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    OVERLAP: tl.constexpr = False,
):
    """Grid (keys, parts, n). Writes float32 mixes [n, queries, parts, SIZE], each normalized, and their log2-lse
    [n, queries, parts]; nothing for an empty part."""
    settle(OVERLAP)
    head, part, row = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length, slot = tl.load(lengths + row), tl.load(slots + row).to(tl.int64)
    near, span = bounds(length, parts, WINDOW, KEYS)
    low = near + part * span
    high = tl.minimum(low + span, length)
    if low >= high:
        return
    local, steps, columns = tl.arange(0, ROWS), tl.arange(0, KEYS), tl.arange(0, PAD)
    exists = (local < GROUP)[:, None] & (columns < SIZE)[None, :]
    query = tl.load(
        q + row.to(tl.int64) * q_row + head * GROUP * SIZE + (local[:, None] * SIZE + columns[None, :]),
        mask=exists,
        other=0.0,
    )
    key_row, value_row = key_row * UNIT, value_row * UNIT
    keys += slot * (key_slot * UNIT) + head * SIZE
    values += slot * (value_slot * UNIT) + head * SIZE
    top = tl.full([ROWS], -1e30, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    mixed = tl.zeros([ROWS, PAD], tl.float32)
    for begin in tl.range(low, high, KEYS):
        there = (begin + steps < high)[:, None] & (columns < SIZE)[None, :]
        place = (begin + steps).to(tl.int64)[:, None]
        key = tl.load(keys + place * key_row + columns[None, :], mask=there, other=0.0).to(query.dtype)
        s = tl.dot(query, key.T, input_precision="ieee") * scale
        if CAP != 0:
            s = saturated(s * (1 / (CAP * LOG2E))) * (CAP * LOG2E)
        s = tl.where((begin + steps < high)[None, :], s, float("-inf"))
        peak = tl.maximum(top, tl.max(s, 1))
        p = tl.exp2(s - peak[:, None])
        fade = tl.exp2(top - peak)
        total = total * fade + tl.sum(p, 1)
        value = tl.load(values + place * value_row + columns[None, :], mask=there, other=0.0).to(query.dtype)
        mixed = tl.dot(p.to(query.dtype), value, mixed * fade[:, None], input_precision="ieee")
        top = peak
    place = ((row * tl.num_programs(0) + head) * GROUP + local) * parts + part
    tl.store(lse + place, top + tl.log2(total), mask=local < GROUP)
    tl.store(mixes + place.to(tl.int64)[:, None] * SIZE + columns[None, :], mixed * (1 / total)[:, None], mask=exists)


@Entry
@triton.jit
def join(
    mixes,
    lse,
    lengths,
    out,
    out_row,
    parts,
    SIZE: tl.constexpr,
    PAD: tl.constexpr,
    WINDOW: tl.constexpr,
    PARTS: tl.constexpr,
    KEYS: tl.constexpr,
    OVERLAP: tl.constexpr = False,
):
    """Grid (queries, n): out is the mean of the parts' mixes, weighted by their lse. A row that sees nothing is 0."""
    settle(OVERLAP)
    head, row = tl.program_id(0), tl.program_id(1)
    length, columns, number = tl.load(lengths + row), tl.arange(0, PAD), tl.arange(0, PARTS)
    near, span = bounds(length, parts, WINDOW, KEYS)
    place = (row * tl.num_programs(0) + head) * parts
    filled = (number < parts) & (number * span < length - near)
    weights = tl.load(lse + place + number, mask=filled, other=float("-inf"))
    weights = tl.exp2(weights - tl.maximum(tl.max(weights, 0), -1e30))
    weights = weights / tl.maximum(tl.sum(weights, 0), 1e-30)
    mix = tl.load(
        mixes + (place + number).to(tl.int64)[:, None] * SIZE + columns[None, :],
        mask=filled[:, None] & (columns < SIZE)[None, :],
        other=0.0,
    )
    mixed = tl.sum(mix * weights[:, None], 0)
    tl.store(
        out + row.to(tl.int64) * out_row + head * SIZE + columns, mixed.to(out.dtype.element_ty), mask=columns < SIZE
    )


def attend_cache(q, keys, values, slot_of_row, length_of_row, heads: Heads, out) -> None:
    """q, out: [n, n_heads*head_dim], row i a new token of slot slot_of_row[i] that sees the first length_of_row[i]
    keys.

    keys, values: caches [slots, context, n_kv_heads*head_dim], converted to the type of q where theirs is another;
    slot_of_row, length_of_row: int32 [n] on the device. Lengths may be anything up to the context.
    """
    n, context, pad = q.shape[0], keys.shape[1], padded(heads.head_dim)
    if n == 0:
        return
    half = q.element_size() == 2
    step = max(16, STEP // max(pad, 64) // (1 if half else 4))
    reach = min(context, heads.window or context)
    parts = max(1, min(PROGRAMS // (n * heads.n_kv_heads), triton.cdiv(reach, step), PARTS))
    mixes = torch.empty((n, heads.n_heads, parts, heads.head_dim), dtype=torch.float32, device=q.device)
    lse = torch.empty((n, heads.n_heads, parts), dtype=torch.float32, device=q.device)
    strides = keys.stride(0), keys.stride(1), values.stride(0), values.stride(1)
    unit = 16 // keys.element_size()
    for stride in strides:
        unit |= stride
    unit &= -unit
    attend_part[heads.n_kv_heads, parts, n](
        q,
        keys,
        values,
        slot_of_row,
        length_of_row,
        mixes,
        lse,
        q.stride(0),
        *(x // unit for x in strides),
        heads.scale * LOG2E.value,
        parts,
        GROUP=heads.group,
        SIZE=heads.head_dim,
        PAD=pad,
        WINDOW=heads.window,
        CAP=float(heads.cap),
        UNIT=unit,
        ROWS=max(16, triton.next_power_of_2(heads.group)),
        KEYS=step,
        num_warps=4,
        num_stages=3 if half else 1,
        **overlap(q, n),
    )
    join[heads.n_heads, n](
        mixes,
        lse,
        length_of_row,
        out,
        out.stride(0),
        parts,
        SIZE=heads.head_dim,
        PAD=pad,
        WINDOW=heads.window,
        PARTS=triton.next_power_of_2(parts),
        KEYS=step,
        num_warps=4,
        **overlap(q, n),
    )
