"""y = x Wᵀ + s (x Aᵀ) Bᵀ for linears that share an input, and its backward, as bf16 products with float32 sums.

As in numpy/linear.py the low-rank pair rides in the base product: [x | h] times [W | B]ᵀ, h = s x Aᵀ, and backwards
[dy | g] times [W ; s A], g = dy B. Left sides are made bf16 once (Rows); a tile of W is dequantized to float32 in a
worker's cache, rounded into panels there, and used for all tokens.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from anytune.engine.numpy.linear import Group, dropped, scaled_down, streamed
from anytune.engine.numpy.workers import Job, piece, pieces

from . import gemm, tiles
from .cuts import backward_pieces, forward_pieces, tile_rows
from .gradients import gradient_jobs, turned_words
from .packed import packed_of
from .rows import Rows, address, aligned, make

GRADIENT = 256  # columns of a piece of the pairs' gradients
ROWS = 64  # of a piece of what goes row by row, at least


def by_rows(e, tokens: int, work: Callable[[int, int, int], None]) -> None:
    """work(number, low, high) over pieces of the rows."""
    e.workers.run(
        [lambda number, a=a, b=b: work(number, a, b) for a, b in pieces(0, tokens, piece(tokens, ROWS, 4), 4)]
    )


# ---- left sides --------------------------------------------------------------------------------------------


def left_rows(e, tokens: int, group: Group, write, inputs=None) -> Rows:
    """[x | h] as Rows. write(number, low, high, rows) puts x there; inputs(low, high): another x for h (dropout)."""
    features, rank = group.in_features, group.rank
    rows = make(e, tokens, features + rank, group)
    rows.shape = (tokens, features)
    packed = 0
    if rank:
        downs = scaled_down(group)
        packed = aligned(e, 0, "downs", gemm.packed_words(features, rank))
        gemm.pack_columns(address(downs), downs.strides[0], rank, features, packed, gemm.depth_of(features), 0)

    def work(number: int, low: int, high: int) -> None:
        write(number, low, high, rows)
        at, stride, target = (
            rows.address + low * rows.stride,
            rows.stride,
            rows.address + low * rows.stride + 2 * features,
        )
        if features % 2:
            gemm.clear(target, stride, high - low)
        if not rank:
            return
        scratch = aligned(e, number, "low", (high - low) * rank)
        if inputs is None:
            tiles.low_rows(at, stride, high - low, features, packed, rank, scratch, target)
            return
        other = inputs(low, high)
        own_stride = gemm.row_bytes(features)
        own = aligned(e, number, "dropped", (high - low + gemm.SPARE) * own_stride // 4)
        gemm.round_rows(address(other), other.strides[0], high - low, features, own, own_stride)
        gemm.product(own, own_stride, packed, gemm.depth_of(features), scratch, 4 * rank, high - low, rank, features, 0)
        gemm.round_rows(scratch, 4 * rank, high - low, rank, target, stride)

    by_rows(e, tokens, work)
    return rows


def _writer(x: np.ndarray):
    """How left_rows rounds float32 rows."""

    def write(number: int, low: int, high: int, rows: Rows) -> None:
        gemm.round_rows(
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
        _writer(x),
        None if mask is None else lambda low, high: dropped(e, x, group, mask, low, high),
    )


def right_sides(e, group: Group) -> list[int]:
    """Each pair's B, packed for g = dy B: addresses."""
    sizes = [0 if s is None else gemm.packed_words(*s.b.shape) for s in group.pairs]
    at, found = aligned(e, 0, "ups", sum(sizes)), []
    for pair, size in zip(group.pairs, sizes):
        found.append(at)
        if pair is not None:
            gemm.pack_rows(
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
            gemm.round_rows(
                address(dy) + low * dy.strides[0], dy.strides[0], high - low, dy.shape[1], at + 2 * first, rows.stride
            )
        if rank and any(bound % 2 for bound in group.bounds):
            gemm.clear(at + 2 * width, rows.stride, high - low)
        for index, pair in enumerate(group.pairs):
            if pair is not None:
                out, r = pair.b.shape
                tiles.low_rows(
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


# ---- forward -----------------------------------------------------------------------------------------------


def dropout(e, group: Group, tokens: int):
    """The group's mask if dropout acts on it now."""
    return e.dropout_mask(group, tokens) if group.dropout and e.training and group.rank else None


def linear(e, x, group: Group) -> tuple[np.ndarray, ...]:
    """x: [T, in] -> one float32 [T, out] for each linear of the group, columns of one buffer."""
    y = e.array(x.shape[0], group.width)
    x = left(e, x, group, dropout(e, group, x.shape[0]))
    if (packed := packed_of(e, group)) is not None:
        e.workers.run(packed.forward_jobs(e, x, y))
        return group.split(y)
    e.workers.run([_forward_task(e, x, group, *place, y) for place in forward_pieces(group, tile_rows(group, e.sizes))])
    return group.split(y)


def _forward_task(e, x: Rows, group: Group, index: int, first: int, last: int, y: np.ndarray):
    weight, pair, bias = group.weights[index], group.pairs[index], group.biases[index]
    features, start, rows = group.in_features, group.bounds[index], last - first
    before, end = group.ranks()[index] if pair is not None else (0, 0)
    columns = features + end

    def task(number: int) -> None:
        tile = e.scratch(number, "tile", rows * columns).reshape(rows, columns)
        weight.rows(first, last, tile, lambda size: e.raw(number, size))
        tiles.forward(
            address(tile),
            rows,
            features,
            address(pair.b) + first * pair.b.strides[0] if pair is not None else 0,
            before,
            end - before,
            aligned(e, number, "packed", gemm.packed_words(columns, rows)),
            x.address,
            x.stride,
            x.shape[0],
            address(y) + 4 * (start + first),
            y.strides[0],
            address(bias) + 4 * first if bias is not None else 0,
            bias is not None,
        )

    return task


# ---- backward ----------------------------------------------------------------------------------------------


def linear_backward(e, dys: tuple, x, group: Group, need_dx: bool = True) -> np.ndarray | None:
    """Adds to the group's gradients; returns dx float32 [T, in], or None if it is not needed."""
    tokens, features, rank = x.shape[0], group.in_features, group.rank
    mask = dropout(e, group, tokens)
    dy, downs = gradient_rows(e, dys, group), scaled_down(group) if rank else np.empty((0, features), np.float32)
    jobs: list[Job] = []
    if rank:
        x = (
            left(e, x, group)
            if mask is None
            else left_rows(e, tokens, group, _writer(dropped(e, _float32(x), group, mask, 0, tokens)))
        )
        jobs += _Pairs(e, dy, x, group).jobs()
    if trains_whole(group):
        x = left(e, x, group)
        jobs += gradient_jobs(e, dy, x, group)
    dx = e.array(tokens, features) if need_dx else None
    packed = packed_of(e, group)
    if packed is not None and not packed.both:
        packed = None
    raw = streamed(e, group) if need_dx and packed is None else None
    beside = downs if mask is None else downs[:0]
    if packed is not None and dx is not None:
        jobs = packed.backward_jobs(dy, beside, dx) + jobs
    elif dx is not None:
        jobs = [
            _backward_task(e, dy, group, beside, *place, raw, dx) for place in backward_pieces(group, e.sizes)
        ] + jobs
    e.workers.run(jobs)
    if dx is not None and mask is not None:
        _add_masked(e, dy, group, downs, mask, dx)
    return dx


def trains_whole(group: Group) -> bool:
    """Whether matrices or biases of the group are trained."""
    return any(w.gradient is not None for w in group.weights) or any(g is not None for g in group.bias_gradients)


def _float32(x) -> np.ndarray:
    return x.float32() if isinstance(x, Rows) else x


def _backward_task(e, dy: Rows, group: Group, downs: np.ndarray, first: int, last: int, raw, dx: np.ndarray):
    columns, height, rank = last - first, group.width, len(downs)

    def task(number: int) -> None:
        tile = e.scratch(number, "tile", (height + rank) * columns).reshape(height + rank, columns)
        for index, weight in enumerate(group.weights):
            weight.columns(first, last, tile[group.bounds[index] : group.bounds[index + 1]], raw[index])
        tiles.backward(
            address(tile),
            height,
            columns,
            address(downs) + 4 * first,
            downs.strides[0],
            rank,
            aligned(e, number, "packed", gemm.packed_words(height + rank, columns)),
            dy.address,
            dy.stride,
            dx.shape[0],
            address(dx) + 4 * first,
            dx.strides[0],
        )

    return task


class _Pairs:
    """Gradients of a group's pairs: dA = s gᵀ x and dB = dyᵀ h, sums over all tokens in one order."""

    def __init__(self, e, dy: Rows, x: Rows, group: Group):
        self.e, self.dy, self.x, self.group, self.tokens = e, dy, x, group, dy.shape[0]
        rank, tokens, spans = group.rank, self.tokens, group.ranks()
        self.stride, self.depth = gemm.row_bytes(-(-tokens // 32) * 32), gemm.depth_of(tokens)
        self.turned = aligned(e, 0, "turned", turned_words(rank, tokens))
        gemm.turn(dy.address + 2 * group.width, dy.stride, tokens, rank, 2, self.turned, self.stride)
        sizes = [gemm.packed_words(tokens, last - first) for first, last in spans]
        at = aligned(e, 0, "inner", sum(sizes))
        self.inner = []
        for (first, last), size in zip(spans, sizes):
            gemm.pack_rows(
                x.address + 2 * (group.in_features + first), x.stride, last - first, tokens, 2, at, self.depth, 0
            )
            self.inner.append(at)
            at += 4 * size

    def jobs(self) -> list[Job]:
        """Some columns of dA each, and some rows of a dB."""
        found: list[Job] = [self._down(*place) for place in pieces(0, self.group.in_features, GRADIENT, 16)]
        for index, pair in enumerate(self.group.pairs):
            if pair is not None:
                found += [self._up(index, *place) for place in pieces(0, pair.b.shape[0], GRADIENT, 16)]
        return found

    def _down(self, first: int, last: int):
        e, columns = self.e, last - first

        def task(number: int) -> None:
            packed = aligned(e, number, "packed", gemm.packed_words(self.tokens, columns))
            gemm.pack_rows(self.x.address + 2 * first, self.x.stride, columns, self.tokens, 2, packed, self.depth, 0)
            for pair, (low, high) in zip(self.group.pairs, self.group.ranks()):
                if pair is not None:
                    piece = aligned(e, number, "low", (high - low) * columns)
                    tiles.add_product(
                        pair.scale,
                        self.turned + low * self.stride,
                        self.stride,
                        packed,
                        high - low,
                        columns,
                        self.tokens,
                        piece,
                        address(pair.grad_a) + 4 * first,
                        pair.grad_a.strides[0],
                    )

        return task

    def _up(self, index: int, first: int, last: int):
        e, pair, rows = self.e, self.group.pairs[index], last - first

        def task(number: int) -> None:
            left = aligned(e, number, "packed", turned_words(rows, self.tokens))
            gemm.turn(
                self.dy.address + 2 * (self.group.bounds[index] + first),
                self.dy.stride,
                self.tokens,
                rows,
                2,
                left,
                self.stride,
            )
            gemm.product(
                left,
                self.stride,
                self.inner[index],
                self.depth,
                address(pair.grad_b) + first * pair.grad_b.strides[0],
                pair.grad_b.strides[0],
                rows,
                pair.b.shape[1],
                self.tokens,
                1,
            )

        return task


def _add_masked(e, dy: Rows, group: Group, downs: np.ndarray, mask, dx: np.ndarray) -> None:
    """dx += mask/(1-p) * (dy B) (s A), the low-rank path under dropout."""
    factor, through = np.float32(1.0 / (1.0 - group.dropout)), dy.part(group.width, group.rank)

    def rows(low: int, high: int) -> None:
        dx[low:high] += (through.float32(low, high) @ downs) * (mask[low:high] * factor)

    e.workers.rows(dx.shape[0], rows, 64)
