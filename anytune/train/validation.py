"""Validation: when it is due, what it finds, and whether it still gets better."""

from __future__ import annotations

import math

import numpy as np

from anytune.errors import UserError
from anytune.text.packing import make_batch, pack
from anytune.train.steps import Position, loss_tokens
from anytune.train.settings import TrainSettings


class Validation:
    """data: a Dataset or None, and then nothing is ever due.

    best: {"step", "val_loss"} or None; waited: evaluations since.
    """

    def __init__(self, trainee, data, settings: TrainSettings, process_group):
        if data is not None and not np.any(data.loss):
            raise UserError("The validation data has no tokens with loss.")
        self.trainee, self.data, self.settings, self.process_group = trainee, data, settings, process_group
        bins = pack(data, settings.ubatch, settings.seed, 0) if data is not None else []
        self.bins = [indexes for indexes in bins if loss_tokens(data, indexes)]
        self.tokens = sum(loss_tokens(data, indexes) for indexes in bins)
        self.best: dict | None = None
        self.waited = 0

    def due(self, position: Position, total: int) -> bool:
        """Whether it follows the step at `position` of `total`."""
        if self.data is None:
            return False
        every, step = self.settings.val_every, position.step
        return step == total or (step % every == 0 if every else position.ends_epoch)

    def measure(self, turns, stopped) -> float | None:
        """Mean loss over the set's loss tokens; None if interrupted.

        turns: the numbers of micro-batches that this rank takes (None: it only goes along); stopped() exchanges and
        tells whether to stop, once after each.
        """
        losses = [0.0] * len(self.bins)
        for turn, number in enumerate(turns):
            if number is not None or self.process_group.sharded:
                loss = float(self.trainee.evaluate(make_batch(self.data, self.bins[number or 0])))
                if number is not None:
                    losses[number] = loss
            if stopped() and turn + 1 < len(turns):
                return None
        return sum(self.process_group.all_reduce(losses)) / self.tokens

    def take(self, step: int, value: float, keep) -> None:
        """Note what was found after a step; keep() -> whether the best so far could be kept."""
        if math.isfinite(value) and (self.best is None or value < self.best["val_loss"]):
            if keep():
                self.best, self.waited = {"step": step, "val_loss": value}, 0
        else:
            self.waited += 1

    @property
    def out_of_patience(self) -> bool:
        return bool(self.data is not None and 0 < self.settings.early_stop <= self.waited)
