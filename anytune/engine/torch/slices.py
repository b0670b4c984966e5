"""Weights that no card holds alone: each process has a slice of the file's blocks,
and gathers the others' for each use.

A layer's matrices travel together: asking for each by itself costs the host more time than the device needs for the
layer. What is gathered lies in two buffers. While one is read, the next layer is on its way into the other, on the
communication stream: a pass over the model goes through the layers in the order of the first pass of its kind. A layer
that was not foreseen is only later. Every process gathers in the same order, since all run the same kinds of passes.

Gathers are no part of a recorded pass: a communicator inside of a graph can wait for ever for one outside. The
recording is cut where a layer begins (segments.py), and what is asked of the communicator there is asked again at each
replay.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial

import torch

from .segments import Segments

Tensor = torch.Tensor
LINE = 16  # bytes: matrices begin at multiples of it


def rows_each(rows: int, processes: int) -> int:
    """Rows of a matrix that one process holds; the last one's are filled up with zeros."""
    return -(-rows // processes)


def slice_bytes(weight, processes: int) -> int:
    """What one process holds of a matrix, whole lines."""
    return -(-rows_each(weight.out_features, processes) * weight.row_bytes // LINE) * LINE


def layer_of(name: str) -> str:
    """blk.3.attn_q.weight: blk.3"""
    return ".".join(name.split(".")[:2])


def layers_of(names) -> dict[str, list[str]]:
    """The names, by layer."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(layer_of(name), []).append(name)
    return found


class Slices:
    """This process's slices and the two buffers, of one engine. late: uses that had not been foreseen."""

    def __init__(self, engine, weights):
        self.process_group, self.late = engine.process_group, 0
        named = {weight.name: weight for weight in weights}
        self.places: dict[str, int] = {}  # of each matrix, within its layer's piece
        self.pieces: dict[str, Tensor] = {}  # what this process holds of each layer
        for layer, names in layers_of(named).items():
            at = 0
            for name in names:
                self.places[name] = at
                at += slice_bytes(named[name], self.process_group.size)
            self.pieces[layer] = piece = torch.zeros(at, dtype=torch.uint8, device=engine.device)
            for name in names:
                self._load(named[name], piece)
        size = self.process_group.size * max(piece.numel() for piece in self.pieces.values())
        self.buffers = [torch.empty(size, dtype=torch.uint8, device=engine.device) for _ in range(2)]
        self.held: list[str | None] = [None, None]  # the layer in each buffer, or on its way there
        self.works = [None, None]  # handles of gathers that were not waited for yet
        self.now = 0  # the buffer in use
        self.orders: dict[str, list[str]] = {}  # of the layers in each kind of pass
        self.order: list[str] | None = None  # in the pass under way
        self.learns, self.at = False, 0  # whether it is the first of its kind; layers that it came to
        self.segments: Segments | None = None  # the recording under way
        for weight in weights:
            weight.slices = self

    def _load(self, weight, piece: Tensor) -> None:
        each = rows_each(weight.out_features, self.process_group.size)
        low = min(each * self.process_group.rank, weight.out_features)
        high = min(low + each, weight.out_features)
        if high > low:
            at = self.places[weight.name]
            piece[at : at + (high - low) * weight.row_bytes].copy_(weight.read(low, high).view(-1))

    @contextlib.contextmanager
    def running(self, kind: str) -> Iterator[None]:
        """A pass of that kind, eager or replayed: nothing is on its way before it or after it."""
        self._begin(kind)
        if self.order:
            self._call(self.order[0], 1)
        try:
            yield
        finally:
            for place in (0, 1):
                self._wait(place)
            self.order, self.held, self.now = None, [None, None], 0

    @contextlib.contextmanager
    def recorded(self, kind: str, segments: Segments) -> Iterator[None]:
        """A pass that is recorded and gathers nothing; its replay, within running(), does."""
        self._begin(kind)
        self.segments = segments
        if self.order:
            self.held[1] = self.order[0]
        try:
            yield
        finally:
            self.segments, self.order, self.held, self.now = None, None, [None, None], 0

    def _begin(self, kind: str) -> None:
        self.order = self.orders.setdefault(kind, [])
        self.learns, self.at = not self.order, 0

    def take(self, weight) -> Iterator[tuple[int, Tensor]]:
        """(number of the first row, uint8 [rows, row_bytes]) of each process's part of the matrix, until a matrix of
        another layer is taken."""
        layer = layer_of(weight.name)
        if self.held[self.now] != layer:
            self._turn_to(layer)
        each, size = rows_each(weight.out_features, self.process_group.size), self.pieces[layer].numel()
        for rank in range(self.process_group.size):
            rows = min(each, weight.out_features - rank * each)
            if rows > 0:
                at = rank * size + self.places[weight.name]
                part = self.buffers[self.now][at : at + rows * weight.row_bytes]
                yield rank * each, part.view(rows, weight.row_bytes)

    def _turn_to(self, layer: str) -> None:
        """Take up the other buffer, and let the next layer come into this one."""
        before, self.now = self.now, 1 - self.now
        calls = []
        if self.held[self.now] != layer:
            self.late += 1
            calls.append(partial(self._call, layer, self.now))
        calls.append(partial(self._wait, self.now))
        self.held[self.now] = layer
        self.at += 1
        if self.learns and self.order is not None:
            self.order.append(layer)
        else:
            following = self._following(layer)
            if following not in (None, self.held[before]):
                calls.append(partial(self._call, following, before))
                self.held[before] = following
        if self.segments is not None:
            self.segments.between(calls)
            return
        for call in calls:
            call()

    def _following(self, layer: str) -> str | None:
        """What came after that layer at this point of the first pass, if it is the one that came then."""
        known = self.order or []
        return known[self.at] if self.at < len(known) and known[self.at - 1] == layer else None

    def _call(self, layer: str, place: int) -> None:
        """Start to gather; the device does so once what was asked of it before is done."""
        self._wait(place)
        self.held[place] = layer
        piece = self.pieces[layer]
        self.works[place] = self.process_group.all_gather_(
            self.buffers[place][: self.process_group.size * piece.numel()], piece
        )

    def _wait(self, place: int) -> None:
        if self.works[place] is not None:
            self.process_group.wait_for(self.works[place])
            self.works[place] = None
