"""What products read on their left, as rows of bf16: inputs with their low-rank columns, and gradients with theirs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from anytune.engine.numpy.linear import Group, dropped, scaled_down
from anytune.engine.numpy.workers import piece, pieces

from . import gemm
from .rows import Rows, address, aligned, make

ROWS = 64  # of a piece of what goes row by row, at least


def by_rows(e, tokens: int, work: Callable[[int, int, int], None]) -> None:
    """work(number, low, high) over pieces of the rows."""
    e.workers.run([partial(_some_rows, work, *cut) for cut in pieces(0, tokens, piece(tokens, ROWS, 4), 4)])


def _some_rows(work: Callable[[int, int, int], None], low: int, high: int, number: int) -> None:
    work(number, low, high)


def left_rows(e, tokens: int, group: Group, write, inputs=None) -> Rows:
    """[x | h] as Rows. write(number, low, high, rows) puts x there; inputs(low, high): another x for h (dropout)."""
    features, rank = group.in_features, group.rank
    rows = make(e, tokens, features + rank, group)
    rows.shape = (tokens, features)
    packed = 0
    if rank:
        downs = scaled_down(group)
        packed = aligned(e, 0, "downs", gemm.packed_words(features, rank))
        e.gemm.pack_columns(address(downs), downs.strides[0], rank, features, packed, gemm.depth_of(features), 0)

    def work(number: int, low: int, high: int) -> None:
        write(number, low, high, rows)
        at, stride, target = (
            rows.address + low * rows.stride,
            rows.stride,
            rows.address + low * rows.stride + 2 * features,
        )
        if features % 2:
            e.gemm.clear(target, stride, high - low)
        if not rank:
            return
        scratch = aligned(e, number, "low", (high - low) * rank)
        if inputs is None:
            e.tiles.low_rows(at, stride, high - low, features, packed, rank, scratch, target)
            return
        other = inputs(low, high)
        own_stride = gemm.row_bytes(features)
        own = aligned(e, number, "dropped", (high - low + gemm.SPARE) * own_stride // 4)
        e.gemm.round_rows(address(other), other.strides[0], high - low, features, own, own_stride)
        e.gemm.product(
            own, own_stride, packed, gemm.depth_of(features), scratch, 4 * rank, high - low, rank, features, 0
        )
        e.gemm.round_rows(scratch, 4 * rank, high - low, rank, target, stride)

    by_rows(e, tokens, work)
    return rows


def writer(e, x: np.ndarray):
    """How left_rows rounds float32 rows."""

    def write(number: int, low: int, high: int, rows: Rows) -> None:
        e.gemm.round_rows(
            address(x) + low * x.strides[0],
            x.strides[0],
            high - low,
            x.shape[1],
            rows.address + low * rows.stride,
            rows.stride,
        )

    return write


def left(e, x, group: Group, mask=None) -> Rows:
    """x, float32 [T, in] or Rows, as [x | h]; under a dropout mask h is that of the dropped x."""
    if isinstance(x, Rows):
        if mask is None and (x.group is group or not group.rank):
            return x
        x = x.float32()
    return left_rows(
        e,
        x.shape[0],
        group,
        writer(e, x),
        None if mask is None else lambda low, high: dropped(e, x, group, mask, low, high),
    )


def right_sides(e, group: Group) -> list[int]:
    """Each pair's B, packed for g = dy B: addresses."""
    sizes = [0 if s is None else gemm.packed_words(*s.b.shape) for s in group.pairs]
    at, found = aligned(e, 0, "ups", sum(sizes)), []
    for pair, size in zip(group.pairs, sizes):
        found.append(at)
        if pair is not None:
            e.gemm.pack_rows(
                address(pair.b),
                pair.b.strides[0],
                pair.b.shape[1],
                pair.b.shape[0],
                4,
                at,
                gemm.depth_of(pair.b.shape[0]),
                0,
            )
        at += 4 * size
    return found


def gradient_rows(e, dys: tuple, group: Group) -> Rows:
    """[dy | g], g = dy B, from each linear's dy: float32, or Rows that are side by side already."""
    tokens, width, rank = dys[0].shape[0], group.width, group.rank
    whole = all(isinstance(d, Rows) for d in dys) and all(b.follows(a) for a, b in zip(dys, dys[1:]))
    if whole and dys[0].row_padding() >= width + rank:
        rows = dys[0].part(0, width)
        dys = ()
    else:
        rows = make(e, tokens, width + rank)
        rows.shape = (tokens, width)
        dys = tuple(d.float32() if isinstance(d, Rows) else d for d in dys)
    packed, spans = right_sides(e, group), group.ranks()

    def work(number: int, low: int, high: int) -> None:
        at = rows.address + low * rows.stride
        for dy, first in zip(dys, group.bounds):
            e.gemm.round_rows(
                address(dy) + low * dy.strides[0], dy.strides[0], high - low, dy.shape[1], at + 2 * first, rows.stride
            )
        if rank and any(bound % 2 for bound in group.bounds):
            e.gemm.clear(at + 2 * width, rows.stride, high - low)
        for index, pair in enumerate(group.pairs):
            if pair is not None:
                out, r = pair.b.shape
                e.tiles.low_rows(
                    at + 2 * group.bounds[index],
                    rows.stride,
                    high - low,
                    out,
                    packed[index],
                    r,
                    aligned(e, number, "low", (high - low) * r),
                    at + 2 * (width + spans[index][0]),
                )

    by_rows(e, tokens, work)
    return rows
