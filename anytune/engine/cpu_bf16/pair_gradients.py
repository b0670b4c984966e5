"""Gradients of low-rank pairs as bf16 products."""

from __future__ import annotations

from functools import partial

from anytune.engine.numpy.linear import Group
from anytune.engine.numpy.workers import Job, pieces

from . import gemm
from .gradients import turned_bytes, turned_words
from .rows import Rows, address, aligned

GRADIENT = 256  # columns of a piece of the pairs' gradients


class Pairs:
    """Gradients of a group's pairs: dA = s gᵀ x and dB = dyᵀ h, sums over all tokens in one order."""

    def __init__(self, e, dy: Rows, x: Rows, group: Group):
        self.e, self.dy, self.x, self.group, self.tokens = e, dy, x, group, dy.shape[0]
        rank, tokens, spans = group.rank, self.tokens, group.ranks()
        self.stride, self.depth = turned_bytes(tokens), gemm.depth_of(tokens)
        self.turned = aligned(e, 0, "turned", turned_words(rank, tokens))
        e.gemm.turn(dy.address + 2 * group.width, dy.stride, tokens, rank, 2, self.turned, self.stride)
        sizes = [gemm.packed_words(tokens, last - first) for first, last in spans]
        at = aligned(e, 0, "inner", sum(sizes))
        self.inner = []
        for (first, last), size in zip(spans, sizes):
            e.gemm.pack_rows(
                x.address + 2 * (group.in_features + first), x.stride, last - first, tokens, 2, at, self.depth, 0
            )
            self.inner.append(at)
            at += 4 * size

    def jobs(self) -> list[Job]:
        """Some columns of dA each, and some rows of a dB."""
        found: list[Job] = [partial(self._down, *place) for place in pieces(0, self.group.in_features, GRADIENT, 16)]
        for index, pair in enumerate(self.group.pairs):
            if pair is not None:
                found += [partial(self._up, index, *place) for place in pieces(0, pair.b.shape[0], GRADIENT, 16)]
        return found

    def _down(self, first: int, last: int, number: int) -> None:
        e, columns = self.e, last - first
        packed = aligned(e, number, "packed", gemm.packed_words(self.tokens, columns))
        e.gemm.pack_rows(self.x.address + 2 * first, self.x.stride, columns, self.tokens, 2, packed, self.depth, 0)
        for pair, (low, high) in zip(self.group.pairs, self.group.ranks()):
            if pair is not None:
                piece = aligned(e, number, "low", (high - low) * columns)
                e.tiles.add_product(
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

    def _up(self, index: int, first: int, last: int, number: int) -> None:
        e, pair, rows = self.e, self.group.pairs[index], last - first
        left = aligned(e, number, "packed", turned_words(rows, self.tokens))
        e.gemm.turn(
            self.dy.address + 2 * (self.group.bounds[index] + first),
            self.dy.stride,
            self.tokens,
            rows,
            2,
            left,
            self.stride,
        )
        e.gemm.product(
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
