"""Copies LoRA's factors next to the weights that they act beside: one launch for all pairs of a model."""

from __future__ import annotations

import triton
import triton.language as tl

from .entry import Entry
from ..plain_low import ELEMENTS, PlaceTable


@Entry
@triton.jit
def _place(flat, tiles, scales, arena, BLOCK: tl.constexpr):
    """Grid (tiles). A tile is dense in flat; in the arena it is rows of `columns`, ld apart."""
    entry = tiles + tl.program_id(0) * 5
    source, target = tl.load(entry), tl.load(entry + 1)
    size, columns, ld = tl.load(entry + 2).to(tl.int32), tl.load(entry + 3).to(tl.int32), tl.load(entry + 4)
    scale = tl.load(scales + tl.program_id(0))
    e = tl.arange(0, BLOCK)
    values = tl.load(flat + source + e, mask=e < size, other=0) * scale
    place = arena + target + (e // columns) * ld + e % columns
    tl.store(place, values.to(arena.dtype.element_ty), mask=e < size)


def place(flat, table: PlaceTable, arena):
    """See plain_low.place."""
    if len(table.tiles):
        _place[(len(table.tiles),)](flat, table.tiles, table.scales, arena, BLOCK=ELEMENTS, num_warps=4)
