"""Which examples each optimizer step sees: a pure function of data, sizes and seed, so resume needs no state.

An epoch's micro-batches are dealt to ceil(n / accumulation) steps of nearly equal size. So every epoch ends
with an optimizer step (an evaluation there has seen whole epochs), no gradient is carried over or lost, and
there is no last step of one micro-batch whose noise would count as much as a full step's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from anytune.errors import UserError
from anytune.text.packing import pack
from anytune.train.settings import TrainSettings

Step = list[list[int]]  # example indexes of each micro-batch


@dataclass(frozen=True)
class Position:
    """An optimizer step's place: `index` counts the steps of `epoch` (both from 0); step counts from 1."""

    step: int
    epoch: int
    index: int
    epoch_steps: int

    @property
    def ends_epoch(self) -> bool:
        return self.index + 1 == self.epoch_steps

    @property
    def epochs_done(self) -> float:
        """Epochs behind us once this step is done (for metrics), rounded to 4 digits."""
        return round(self.epoch + (self.index + 1) / self.epoch_steps, 4)


class Steps:
    """All steps of a run. Packing differs from epoch to epoch, so every epoch's steps are counted ahead.

    epoch_steps: list[int], steps of each epoch; total: int, optimizer steps of the run;
    tokens: int, tokens of the run (exact unless max_steps cuts an epoch, then estimated).
    """

    def __init__(self, dataset, settings: TrainSettings):
        self.dataset, self.settings = dataset, settings
        self.per_step = max(1, settings.batch // settings.ubatch)
        self._kept: tuple[int, list[Step]] | None = None
        has_loss = np.add.reduceat(dataset.loss, dataset.offsets[:-1], dtype=np.int64) if len(dataset) else []
        self.has_loss = np.asarray(has_loss) > 0
        if not len(dataset) or not self.has_loss.any():
            raise UserError("The training data has no tokens with loss: there is nothing to learn.")
        self.epoch_steps: list[int] = []
        while len(self.epoch_steps) != settings.passes:
            self.epoch_steps.append(len(self.steps_of(len(self.epoch_steps))))
            if settings.max_steps is not None and sum(self.epoch_steps) >= settings.max_steps:
                break
        self.total = sum(self.epoch_steps)
        self.tokens = len(self.epoch_steps) * int(dataset.offsets[-1])
        if settings.max_steps is not None and settings.max_steps < self.total:
            self.tokens = self.tokens * settings.max_steps // self.total
            self.total = settings.max_steps

    def steps_of(self, epoch: int) -> list[Step]:
        """The steps of one epoch. Micro-batches without a loss token would change nothing: left out."""
        if self._kept is None or self._kept[0] != epoch:
            bins = pack(self.dataset, self.settings.ubatch, self.settings.seed, epoch)
            bins = [indexes for indexes in bins if self.has_loss[indexes].any()]
            n = -(-len(bins) // self.per_step)
            edges = [len(bins) * k // n for k in range(n + 1)]
            self._kept = epoch, [bins[lo:hi] for lo, hi in pairwise(edges)]
        return self._kept[1]

    def after(self, step: int) -> Iterator[tuple[Position, Step]]:
        """Positions and contents of the steps after `step` (0: all of them)."""
        first = 1
        for epoch, count in enumerate(self.epoch_steps):
            if step < first + count - 1:
                for index, bins in enumerate(self.steps_of(epoch)):
                    if step < first + index <= self.total:
                        yield Position(first + index, epoch, index, count), bins
            first += count

    def position(self, step: int) -> dict:
        """Where a run is after `step` steps (JSON-able): whole epochs and steps into the next one."""
        left = step
        for epoch, count in enumerate(self.epoch_steps):
            if left < count:
                return {"epoch": epoch, "epoch_step": left}
            left -= count
        return {"epoch": len(self.epoch_steps), "epoch_step": left}


def loss_tokens(data, indexes) -> int:
    """Tokens with loss in these examples (an example's first token is never one)."""
    return sum(int(np.count_nonzero(data.loss[data.offsets[i] + 1 : data.offsets[i + 1]])) for i in indexes)
