"""Weights that no card holds alone: each process has a slice of the file's blocks,
and gathers the others' for each use.

What is gathered lies in two buffers that all matrices share. While one is read, the next matrix is on its way into the
other, on the communication stream: which one that will be is what came after the same uses before. A matrix that was
not foreseen is only later. Every process gathers in the same order, since all run the same model over equally many
micro-batches.
"""

from __future__ import annotations

from collections import deque

import torch

Tensor = torch.Tensor
# uses by which the next is foreseen: a layer's seven, and enough of the one before to tell which pass it is
MEMORY = 12


def rows_each(rows: int, processes: int) -> int:
    """Rows of a matrix that one process holds; the last one's are filled up with zeros."""
    return -(-rows // processes)


class Slices:
    """The two buffers of one engine. late: uses that had not been foreseen."""

    def __init__(self, engine, weights):
        team = engine.team
        self.team, self.late = team, 0
        size = max(rows_each(w.out_features, team.size) * team.size * w.row_bytes for w in weights)
        self.buffers = [torch.empty(size, dtype=torch.uint8, device=engine.device) for _ in range(2)]
        self.held = [None, None]    # the weight in each buffer, or on its way there
        self.works = [None, None]   # handles of gathers that were not waited for yet
        self.now = 0                # the buffer in use
        self.recent: deque[str] = deque(maxlen=MEMORY)
        self.after: dict[tuple[str, ...], object] = {}
        for weight in weights:
            weight.slices = self

    def take(self, weight) -> Tensor:
        """All rows' blocks, uint8 [out, row_bytes], until the next weight is taken."""
        if self.held[self.now] is not weight:
            self.now = 1 - self.now
            if self.held[self.now] is not weight:
                self.late += 1
                self._call(weight, self.now)
            self._wait(self.now)
            self.after[tuple(self.recent)] = weight
            self.recent.append(weight.name)
            foreseen = self.after.get(tuple(self.recent))
            if foreseen is not None and foreseen is not weight:
                self._call(foreseen, 1 - self.now)
        return self._view(weight, self.now)[:weight.out_features]

    def _view(self, weight, place: int) -> Tensor:
        rows = rows_each(weight.out_features, self.team.size) * self.team.size
        return self.buffers[place][:rows * weight.row_bytes].view(rows, weight.row_bytes)

    def _call(self, weight, place: int) -> None:
        """Start to gather; the device does so once what was asked of it before is done."""
        self._wait(place)
        self.held[place] = weight
        self.works[place] = self.team.gather_(self._view(weight, place), weight.slice())

    def _wait(self, place: int) -> None:
        if self.works[place] is not None:
            self.team.wait_for(self.works[place])
            self.works[place] = None
