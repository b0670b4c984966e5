"""A group's matrices kept as the products read them, in bf16: packed once for y, and once for dx if there is memory.

That is 2 bytes a weight each; packing for y, across the rows, is what costs more. Behind the weights each pack has room
for the low-rank pair, which is repacked at each use. Numbers are the same to the bit as with blocks that are
dequantized for each use: only the time is another.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from anytune.engine.numpy.linear import Group, block_columns, streamed
from anytune.engine.numpy.workers import Job, piece, pieces

from . import gemm
from .cuts import COLUMNS, backward_step, forward_pieces, tile_rows
from .rows import LINE, Rows, address, aligned


def can_be_packed(group: Group) -> bool:
    """Whether panels begin where linears and low-rank columns do, and nothing in the group changes but the pairs."""
    return (
        isinstance(group, Group)  # experts are taken one at a time
        and group.in_features % 32 == 0
        and all(b % gemm.PANEL == 0 for b in group.bounds)
        and not group.trains_matrix
    )


def panel_columns(group: Group) -> int:
    """The least run of columns that is whole panels, and whole blocks of every weight."""
    return int(np.lcm(gemm.PANEL, block_columns(group)))


def ends_of(group: Group) -> list[int]:
    """For each linear how many low-rank columns its pack for y has behind the weights:
    its own, and zeros before them."""
    return [last if pair is not None else 0 for pair, (_, last) in zip(group.pairs, group.ranks())]


def words_of(group: Group, packed: str) -> list[int]:
    """Words of each linear's pack for y, and last that of the pack for dx if both are kept."""
    words = [
        gemm.packed_words(group.in_features + end, w.out_features) for w, end in zip(group.weights, ends_of(group))
    ]
    return words + [gemm.packed_words(group.width + group.rank, group.in_features)] * packs_both(group, packed)


def packs_both(group: Group, packed: str) -> bool:
    """Whether a pack for dx is kept, too. Not of the head, whose number is negative:
    its gradient needs all of it at once."""
    return packed == "both" and group.number >= 0


def filled_columns(group: Group, sizes):
    """(first column, last column) of each piece of W that is packed for dx."""
    blocks = panel_columns(group)
    most = min(backward_step(group, sizes), piece(group.in_features, COLUMNS, blocks))
    return pieces(0, group.in_features, most, blocks)


class Packed:
    """The packs of one group, made by all workers. Weights of which both are kept are not held in another way."""

    def __init__(self, e, group: Group):
        self.group, self._buffers, self.addresses = group, [], []
        self.both = packs_both(group, e.sizes.packed)
        for words in words_of(group, e.sizes.packed):
            buffer = e.empty(words + LINE, np.uint32)
            self._buffers.append(buffer)
            self.addresses.append(address(buffer) + 63 & -64)
        self.ends = ends_of(group)
        self._fill(e)

    def _fill(self, e) -> None:
        group = self.group
        raw = streamed(e, group) if self.both else ()
        jobs: list[Job] = [partial(self._rows, e, *place) for place in forward_pieces(group, tile_rows(group, e.sizes))]
        jobs += (
            [partial(self._columns, e, *place, raw) for place in filled_columns(group, e.sizes)] if self.both else []
        )
        e.workers.run(jobs)
        for weight in group.weights if self.both else ():
            weight.forget()

    def _rows(self, e, index: int, low: int, high: int, number: int) -> None:
        weight, features = self.group.weights[index], self.group.in_features
        tile = e.scratch(number, "tile", (high - low) * features).reshape(high - low, features)
        weight.rows(low, high, tile, lambda size: e.raw(number, size))
        depth = gemm.depth_of(features + self.ends[index])
        e.gemm.pack_columns(
            address(tile), 4 * features, high - low, features, self.addresses[index] + 4 * low * depth, depth, 0
        )

    def _columns(self, e, low: int, high: int, raw, number: int) -> None:
        group = self.group
        tile = e.scratch(number, "tile", group.width * (high - low)).reshape(group.width, high - low)
        for index, weight in enumerate(group.weights):
            weight.columns(low, high, tile[group.bounds[index] : group.bounds[index + 1]], raw[index])
        depth = gemm.depth_of(group.width + group.rank)
        e.gemm.pack_rows(
            address(tile), 4 * (high - low), high - low, group.width, 4, self.addresses[-1] + 4 * low * depth, depth, 0
        )

    # ---- the tasks of linear.linear and linear.linear_backward

    def forward_jobs(self, e, x: Rows, y: np.ndarray) -> list[Job]:
        """What makes y [T, width] = [x | h] [W | B]ᵀ."""
        return [partial(self._forward, e, x, *place, y) for place in forward_pieces(self.group, self.group.width)]

    def _forward(self, e, x: Rows, index: int, low: int, high: int, y: np.ndarray, number: int) -> None:
        at = address(y) + 4 * (self.group.bounds[index] + low)
        self.product(e, number, index, low, high, x.address, x.stride, x.shape[0], at, y.strides[0])

    def product(
        self, e, number: int, index: int, low: int, high: int, x: int, x_stride: int, tokens: int, y: int, y_stride: int
    ) -> None:
        """Outputs low…high of a linear for rows [x | h] of bf16 at x -> float32 at y."""
        group, pair, bias, b = self.group, self.group.pairs[index], self.group.biases[index], 0
        depth, (before, end) = gemm.depth_of(group.in_features + self.ends[index]), group.ranks()[index]
        if pair is None:
            before = end = 0
        else:
            b = address(pair.b) + low * pair.b.strides[0]
        e.tiles.forward_packed(
            self.addresses[index] + 4 * low * depth,
            depth,
            high - low,
            group.in_features,
            b,
            before,
            end - before,
            aligned(e, number, "low", (high - low) * end),
            x,
            x_stride,
            tokens,
            y,
            y_stride,
            address(bias) + 4 * low if bias is not None else 0,
            bias is not None,
        )

    def backward_jobs(self, e, dy: Rows, downs: np.ndarray, dx: np.ndarray) -> list[Job]:
        """What makes dx [T, in] = [dy | g] [W ; s A]; downs: s A, or none of its rows."""
        most = piece(self.group.in_features, COLUMNS, gemm.PANEL)
        cuts = pieces(0, self.group.in_features, most, gemm.PANEL)
        return [partial(self._backward, e, dy, downs, *cut, dx) for cut in cuts]

    def _backward(self, e, dy: Rows, downs: np.ndarray, first: int, last: int, dx: np.ndarray, number: int) -> None:
        depth = gemm.depth_of(self.group.width + self.group.rank)
        e.tiles.backward_packed(
            self.addresses[-1] + 4 * first * depth,
            depth,
            self.group.width,
            last - first,
            address(downs) + 4 * first,
            downs.strides[0],
            len(downs),
            dy.address,
            dy.stride,
            dx.shape[0],
            address(dx) + 4 * first,
            dx.strides[0],
        )


def packed_of(e, group: Group):
    """The group's packs, made when training first needs them; None where there are to be none."""
    if group.packed is None and e.training and getattr(e.sizes, "packed", ""):
        if can_be_packed(group):
            group.packed = Packed(e, group)
    return group.packed
