"""One optimizer step: its micro-batches, the update, and its outcome, summed over the ranks."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from anytune.memory import process_bytes
from anytune.text.packing import make_batch
from anytune.train.schedule import Schedule
from anytune.train.settings import TrainSettings
from anytune.train.steps import Position, loss_tokens
from anytune.train.turns import Turns

LOADS = ("expert_peak", "expert_idle")  # a mixture's columns: means over the micro-batches of all ranks


class Diverged(Exception):
    """A loss or a gradient that is not finite. examples: those of the micro-batches, by index."""

    def __init__(self, step: int, what: str, examples: Sequence[int]):
        super().__init__(what)
        self.step, self.what, self.examples = step, what, examples


@dataclass
class InFlightStep:
    """A step that was asked for; its losses and norm are Numbers (see engine/base.py) that may still be on their way.

    losses: of each micro-batch, 0.0 for another rank's.
    """

    position: Position
    bins: list
    losses: list
    norm: Any
    lr: float
    tokens: int
    loss_tokens: int
    started: float  # time.perf_counter()


class OptimizerStep:
    """Steps of a trainee over `train`, a Dataset. Raises Diverged."""

    def __init__(self, trainee: Any, train: Any, settings: TrainSettings, schedule: Schedule, turns: Turns):
        self.trainee, self.train, self.settings, self.schedule, self.turns = trainee, train, settings, schedule, turns
        self.settled = 0.0  # when the last step was, time.perf_counter()

    def launch(self, position: Position, bins: list) -> InFlightStep | None:
        """Ask for one step. None: interrupted in it, nothing applied."""
        step, s, turns, started = position.step, self.settings, self.turns.of(bins), time.perf_counter()
        with_loss = sum(loss_tokens(self.train, indexes) for indexes in bins)
        group, losses = self.turns.process_group, [0.0] * len(bins)
        for turn, micro in enumerate(turns):
            if micro is not None:
                losses[micro] = self.trainee.accumulate(
                    make_batch(self.train, bins[micro]), 1.0 / with_loss, step, micro
                )
            elif group.sharded:
                # the others need this rank's part of the weights: it takes part, adding nothing
                self.trainee.accumulate(make_batch(self.train, bins[0]), 0.0, step, 0)
            if self.turns.exchange(micro is not None and _known_bad(losses[micro]))[0]:
                _check_losses(step, group.all_reduce([float(loss) for loss in losses]), bins)
            if self.turns.stop and turn + 1 < len(turns):
                return None
        lr = self.schedule.lr(step)
        norm = self.trainee.update(
            lr,
            step,
            beta1=s.beta1,
            beta2=s.beta2,
            eps=s.eps,
            weight_decay=s.weight_decay,
            max_grad_norm=s.max_grad_norm,
        )
        tokens = sum(int(self.train.offsets[i + 1] - self.train.offsets[i]) for indexes in bins for i in indexes)
        return InFlightStep(position, bins, losses, norm, lr, tokens, with_loss, started)

    def settle(self, launched: InFlightStep) -> dict[str, Any]:
        """The step's row of metrics, without a validation loss: waits for the device."""
        step = launched.position.step
        # every micro-batch has one rank with its loss, and zeros: the sum is the same however many ranks there are
        share, loads = self.turns.share(launched.bins), self.trainee.loads()
        *losses, peak, idle = self.turns.exchange(
            *(float(loss) for loss in launched.losses), *(share * loads.get(key, 0.0) for key in LOADS)
        )
        _check_losses(step, losses, launched.bins)
        norm = float(launched.norm)
        if not math.isfinite(norm):
            raise Diverged(step, f"the gradient's norm is {norm}", [i for b in launched.bins for i in b])
        now = time.perf_counter()
        seconds, self.settled = now - max(self.settled, launched.started), now
        return {
            "step": step,
            "epoch": launched.position.epochs_done,
            "loss": sum(losses) / launched.loss_tokens,
            "val_loss": None,
            "lr": launched.lr,
            "grad_norm": norm,
            "tokens": launched.tokens,
            "loss_tokens": launched.loss_tokens,
            "rss_bytes": process_bytes(),
            "tokens_per_s": round(launched.tokens / max(seconds, 1e-9), 2),
            "seconds": round(seconds, 6),
            **(dict(zip(LOADS, (peak, idle))) if peak else {}),
        }


def _known_bad(value: Any) -> bool:
    """Whether it is known already that a Number is not finite."""
    return isinstance(value, float) and not math.isfinite(value)


def _check_losses(step: int, losses: Sequence[float], bins: list) -> None:
    for micro, loss in enumerate(losses):
        if not math.isfinite(loss):
            raise Diverged(step, f"the loss is {loss}", bins[micro])
