"""y = x Wᵀ + s (x Aᵀ) Bᵀ for linears that share an input, and its backward, as bf16 products with float32 sums.

As in numpy/linear.py the low-rank pair rides in the base product: [x | h] times [W | B]ᵀ, h = s x Aᵀ, and backwards
[dy | g] times [W ; s A], g = dy B. Left sides are made bf16 once (Rows); a tile of W is dequantized to float32 in a
worker's cache, rounded into panels there, and used for all tokens.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from anytune.engine.numpy.linear import Group, dropped, scaled_down, streamed
from anytune.engine.numpy.workers import Job

from . import gemm
from .cuts import backward_pieces, forward_pieces, tile_rows
from .gradients import gradient_jobs
from .packed import packed_of
from .pair_gradients import Pairs
from .rows import Rows, address, aligned
from .sides import gradient_rows, left, left_rows, writer


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
    cuts = forward_pieces(group, tile_rows(group, e.sizes))
    e.workers.run([partial(_forward_tile, e, x, group, *cut, y) for cut in cuts])
    return group.split(y)


def _forward_tile(e, x: Rows, group: Group, index: int, first: int, last: int, y: np.ndarray, number: int) -> None:
    weight, pair, bias = group.weights[index], group.pairs[index], group.biases[index]
    features, start, rows = group.in_features, group.bounds[index], last - first
    before, end = group.ranks()[index] if pair is not None else (0, 0)
    columns = features + end
    tile = e.scratch(number, "tile", rows * columns).reshape(rows, columns)
    weight.rows(first, last, tile, lambda size: e.raw(number, size))
    e.tiles.forward(
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
            else left_rows(e, tokens, group, writer(e, dropped(e, _float32(x), group, mask, 0, tokens)))
        )
        jobs += Pairs(e, dy, x, group).jobs()
    if group.trains_matrix or group.trains_bias:
        x = left(e, x, group)
        jobs += gradient_jobs(e, dy, x, group)
    dx = e.array(tokens, features) if need_dx else None
    packed = packed_of(e, group)
    if packed is not None and not packed.both:
        packed = None
    raw = streamed(e, group) if need_dx and packed is None else None
    beside = downs if mask is None else downs[:0]
    if packed is not None and dx is not None:
        jobs = packed.backward_jobs(e, dy, beside, dx) + jobs
    elif dx is not None:
        cuts = backward_pieces(group, e.sizes)
        jobs = [partial(_backward_tile, e, dy, group, beside, *cut, raw, dx) for cut in cuts] + jobs
    e.workers.run(jobs)
    if dx is not None and mask is not None:
        _add_masked(e, dy, group, downs, mask, dx)
    return dx


def _float32(x) -> np.ndarray:
    return x.float32() if isinstance(x, Rows) else x


def _backward_tile(e, dy: Rows, group: Group, downs: np.ndarray, first: int, last: int, raw, dx, number: int) -> None:
    columns, height, rank = last - first, group.width, len(downs)
    tile = e.scratch(number, "tile", (height + rank) * columns).reshape(height + rank, columns)
    for index, weight in enumerate(group.weights):
        weight.columns(first, last, tile[group.bounds[index] : group.bounds[index + 1]], raw[index])
    e.tiles.backward(
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


def _add_masked(e, dy: Rows, group: Group, downs: np.ndarray, mask, dx: np.ndarray) -> None:
    """dx += mask/(1-p) * (dy B) (s A), the low-rank path under dropout."""
    factor, through = np.float32(1.0 / (1.0 - group.dropout)), dy.part(group.width, group.rank)

    def rows(low: int, high: int) -> None:
        dx[low:high] += (through.float32(low, high) @ downs) * (mask[low:high] * factor)

    e.workers.rows(dx.shape[0], rows, 64)
