"""Cross-entropy over a vocabulary a tile at a time, with bf16 products; see numpy/loss.py, which this follows."""

from __future__ import annotations

from functools import partial

import numpy as np

from anytune.engine.numpy import loss as whole
from anytune.engine.numpy.linear import Group
from anytune.engine.numpy.loss import most_rows
from anytune.engine.numpy.workers import pieces

from . import gemm, gradients
from .gradients import turned_bytes, turned_words
from .packed import packed_of
from .rows import Rows, address, aligned
from .sides import left


def head_rows(sizes, head: Group) -> int:
    """Rows of the head in a tile."""
    return max(gemm.PANEL, sizes.tile // (head.in_features + head.rank) // gemm.PANEL * gemm.PANEL)


def vocabulary_lanes(sizes, head: Group) -> list[list[tuple[int, int]]]:
    """The head's tiles, (first row, last row) each, dealt to lanes of the vocabulary."""
    lane, step = -(-head.width // (gemm.PANEL * sizes.lanes)) * gemm.PANEL, head_rows(sizes, head)
    return [list(pieces(low, high, step, gemm.PANEL)) for low, high in pieces(0, head.width, lane, gemm.PANEL)]


def cross_entropy(e, h, head: Group, targets: np.ndarray, scale: float, gradient: bool):
    """h: [M, d] -> (sum of losses in nats, dh float32 [M, d], scale times the gradient of that sum, or None).
    Of a capped head it is NumPy's, in float32."""
    if head.cap:
        return whole.cross_entropy(e, h.float32() if isinstance(h, Rows) else h, head, targets, scale, gradient)
    rows, width = h.shape[0], head.in_features
    h = left(e, h, head)
    most = min(most_rows(e.sizes, head), max(rows, e.capacity))
    chunk = -(-rows // -(-rows // most))  # equal chunks
    dh = e.array(rows, width) if gradient else None
    logits = e.flat(most * head.width) if gradient and most * head.width <= e.sizes.logits else None
    parts = e.flat(e.sizes.lanes * most * (width + head.rank)) if gradient else None
    total = 0.0
    for low in e.each(range(0, rows, chunk)):
        high = min(low + chunk, rows)
        part = Chunk(e, h, low, high, head, targets[low:high], logits)
        total += part.loss()
        if dh is not None:
            part.backward(scale, parts, dh[low:high])
    return total, dh


class Chunk:
    """Rows low…high of h against the whole head. kept: a buffer for their logits, or None (they are computed twice)."""

    def __init__(self, e, h: Rows, low: int, high: int, head: Group, targets: np.ndarray, kept: np.ndarray | None):
        self.e, self.head, self.targets, self.rows = e, head, targets, high - low
        self.at, self.stride, self.columns = h.address + low * h.stride, h.stride, head.in_features + head.rank
        self.lanes = vocabulary_lanes(e.sizes, head)
        self.step = max(last - first for lane in self.lanes for first, last in lane)
        self.packed = packed_of(e, head)
        self.logits = None if kept is None else kept[: self.rows * head.width].reshape(self.rows, head.width)
        self.h = h.part(0, self.columns)
        self.low, self.high = low, high

    def in_lanes(self, work) -> None:
        """work(lane, first, last, number of the worker) for every tile; those of a lane in their order."""
        self.e.workers.chains(
            [[partial(work, n, *tile) for tile in self.e.each(lane)] for n, lane in enumerate(self.lanes)]
        )

    def tile(self, number: int, low: int, high: int) -> np.ndarray:
        """Rows low…high of the head, and of its pair's B beside them, as float32 [high - low, columns]."""
        weight, pair = self.head.weights[0], self.head.pairs[0]
        tile = self.e.scratch(number, "tile", (high - low) * self.columns).reshape(high - low, -1)
        weight.rows(low, high, tile, lambda size: self.e.raw(number, size))
        if pair is not None:
            tile[:, self.head.in_features :] = pair.b[low:high]
        return tile

    def scores(self, number: int, low: int, high: int, tile: np.ndarray | None, known: bool = False) -> np.ndarray:
        """Logits [rows, high - low] of a piece, computed unless they are kept and known; of `tile`, or of the packs."""
        if self.logits is not None:
            piece = self.logits[:, low:high]
        else:
            piece = self.e.scratch(number, "logits", self.rows * self.step)[: self.rows * (high - low)]
            piece = piece.reshape(self.rows, high - low)
        if known and self.logits is not None:
            return piece
        if self.packed is not None:
            self.packed.product(
                self.e, number, 0, low, high, self.at, self.stride, self.rows, address(piece), piece.strides[0]
            )
        else:
            packed = aligned(self.e, number, "packed", gemm.packed_words(self.columns, high - low))
            self.e.tiles.forward(
                address(tile),
                high - low,
                self.columns,
                0,
                0,
                0,
                packed,
                self.at,
                self.stride,
                self.rows,
                address(piece),
                piece.strides[0],
                0,
                0,
            )
        return piece

    def loss(self) -> float:
        e, count = self.e, len(self.lanes)
        top, picked = (np.full((count, self.rows), -np.inf, np.float32) for _ in range(2))
        total = np.zeros((count, self.rows), np.float32)

        def work(lane: int, low: int, high: int, number: int) -> None:
            piece = self.scores(number, low, high, None if self.packed else self.tile(number, low, high))
            e.rowwise.loss(
                address(piece),
                piece.strides[0],
                self.rows,
                high - low,
                address(self.targets),
                low,
                address(top[lane]),
                address(total[lane]),
                address(picked[lane]),
                aligned(e, number, "edge", self.step + 16),
            )

        self.in_lanes(work)
        highest = top.max(axis=0)
        with np.errstate(invalid="ignore"):  # of logits that are not numbers: the loss says so
            sums = (total * np.exp(top - highest)).sum(axis=0, dtype=np.float64)
            self.log_sum = highest + np.log(sums).astype(np.float32)
        return float(np.sum(self.log_sum - picked.max(axis=0), dtype=np.float64))

    def backward(self, scale: float, parts: np.ndarray, dh: np.ndarray) -> None:
        e, head, pair, rows, columns = self.e, self.head, self.head.pairs[0], self.rows, self.columns
        parts = parts[: len(self.lanes) * rows * columns].reshape(-1, rows, columns)
        stride, width = gemm.row_bytes(self.step), head.in_features
        trained = pair is not None and pair.grad_b is not None
        if trained:
            rank, turned_stride, deep = head.rank, turned_bytes(rows), gemm.depth_of(rows)
            inner = aligned(e, 0, "inner", gemm.packed_words(rows, rank))
            e.gemm.pack_rows(self.at + 2 * width, self.stride, rank, rows, 2, inner, deep, 0)
        whole = head.weights[0].gradient  # of a head that is trained itself, and has no pair then
        packed_h = gradients.pack(e, self.h, rows, width, self.at) if whole is not None else 0

        def work(lane: int, low: int, high: int, number: int) -> None:
            mine = parts[lane]
            tile = self.tile(number, low, high)
            piece = self.scores(number, low, high, tile, True)
            dlogits = aligned(e, number, "dlogits", (rows + gemm.SPARE) * stride // 4)
            e.rowwise.loss_backward(
                scale,
                address(piece),
                piece.strides[0],
                rows,
                high - low,
                address(self.targets),
                low,
                address(self.log_sum),
                aligned(e, number, "edge", self.step + 16),
                dlogits,
                stride,
            )
            packed = aligned(e, number, "packed", gemm.packed_words(self.step, columns))
            depth = gemm.depth_of(high - low)
            e.gemm.pack_rows(address(tile), tile.strides[0], columns, high - low, 4, packed, depth, 0)
            e.gemm.product(
                dlogits,
                stride,
                packed,
                depth,
                address(mine),
                mine.strides[0],
                rows,
                columns,
                high - low,
                low > self.lanes[lane][0][0],
            )
            if whole is not None:
                gradients.add(e, number, dlogits, stride, high - low, rows, packed_h, whole[low:high])
            if trained:
                turned = aligned(e, number, "turned", turned_words(high - low, rows))
                e.gemm.turn(dlogits, stride, rows, high - low, 2, turned, turned_stride)
                step = pair.grad_b.strides[0]
                e.gemm.product(
                    turned,
                    turned_stride,
                    inner,
                    deep,
                    address(pair.grad_b) + low * step,
                    step,
                    high - low,
                    rank,
                    rows,
                    1,
                )

        self.in_lanes(work)
        for part in parts[1:]:
            e.kernels.add(parts[0], part, parts[0])
        dh[...] = parts[0][:, :width]
        if pair is not None:
            through = parts[0][:, width:] * np.float32(pair.scale)
            dh += through @ pair.a
            if pair.grad_a is not None:
                pair.grad_a += through.T @ self.h.float32(self.low, self.high)[:, :width]
