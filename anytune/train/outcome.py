"""What a run and a step of it come to."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from anytune.train import metrics as metrics_file
from anytune.train.steps import Position
from anytune.train.timing import Timing

if TYPE_CHECKING:
    from anytune.adapter.adapter import Adapter


@dataclass
class Result:
    """How a run ended.

    stopped: "finished", "early" (validation no longer better), "interrupted" or "callback" (one asked for it);
    path: the adapter (or model) in the run's folder, the best on validation if there was one, else the last (None if no
    step was done);
    best: {"step", "val_loss"} or None; load: reads an adapter's file, None: it is no adapter.
    """

    path: Path | None
    run_dir: Path
    stopped: str
    step: int
    total_steps: int
    best: dict[str, Any] | None
    checkpoint: Path | None
    load: Callable[[Path], Any] | None = field(default=None, repr=False)

    @functools.cached_property
    def adapter(self) -> Adapter | Any:  # Any: that it may be None is not to be checked for at each use
        """The adapter at path, read when it is first asked for; None if there is none."""
        return self.load(self.path) if self.load and self.path else None

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """All rows of metrics.jsonl."""
        return metrics_file.read(self.run_dir / "metrics.jsonl")

    @property
    def timing(self) -> Timing | None:
        """What training took; None if no step was done."""
        return Timing.of(self.metrics)


@dataclass(repr=False)
class Run(Result):
    """A Result, and where the adapter or model was put: output (None: only in the run's folder)."""

    output: Path | None = None

    def __repr__(self) -> str:
        best = f", best val_loss {self.best['val_loss']:.4f} at {self.best['step']}" if self.best else ""
        return f"<Run {self.run_dir}: {self.stopped} at step {self.step} of {self.total_steps}{best}, {self.path}>"

    @property
    def exit_code(self) -> int:
        return 130 if self.stopped == "interrupted" else 0


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


def bad(value) -> bool:
    """Whether it is known already that a Number is not finite."""
    return isinstance(value, float) and not math.isfinite(value)


def loss_tokens(data, indexes) -> int:
    """Tokens with loss in these examples (an example's first token is never one)."""
    return sum(int(np.count_nonzero(data.loss[data.offsets[i] + 1 : data.offsets[i + 1]])) for i in indexes)
