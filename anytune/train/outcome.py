"""What a run comes to."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anytune.train import metrics as metrics_file
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
