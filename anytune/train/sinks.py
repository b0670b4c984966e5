"""Optional outside loggers, imported only when --report-to names them."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from anytune.errors import UserError

SHOWN = ("loss", "val_loss", "lr", "grad_norm", "tokens_per_s", "rss_bytes")


class Sinks:
    """The loggers of one run. One that fails (a network, a disk) is reported once and disabled."""

    def __init__(self, names: list[str], folder: Path, run_name: str, settings: dict, warn: Callable[[str], None]):
        """Raises UserError, saying what to install, if a named logger is missing."""
        self.open, self.warn = {name: OPENERS[name](folder, run_name, settings) for name in names}, warn

    def __call__(self, row: dict | None) -> None:
        """Hand on a metrics row; None: the end."""
        for name, sink in list(self.open.items()):
            try:
                sink(row)
            except Exception as error:  # whatever a logger raises must not stop the run
                self.warn(f"{name} failed and is disabled from now on: {error}")
                del self.open[name]


def _shown(row: dict) -> dict[str, float]:
    return {name: row[name] for name in SHOWN if row[name] is not None and math.isfinite(row[name])}


def _tensorboard(folder: Path, run_name: str, settings: dict) -> Callable:
    try:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter
    except ImportError:
        raise UserError("--report-to tensorboard needs tensorboard: pip install tensorboard") from None
    import time

    writer = EventFileWriter(str(folder / "tensorboard"))

    def sink(row):
        if row is None:
            return writer.close()
        values = [Summary.Value(tag=f"train/{name}", simple_value=value) for name, value in _shown(row).items()]
        writer.add_event(Event(wall_time=time.time(), step=row["step"], summary=Summary(value=values)))
        writer.flush()

    return sink


def _wandb(folder: Path, run_name: str, settings: dict) -> Callable:
    try:
        import wandb
    except ImportError:
        raise UserError("--report-to wandb needs wandb: pip install wandb") from None
    run = wandb.init(project="anytune", name=run_name, id=run_name, resume="allow", dir=str(folder), config=settings)

    def sink(row):
        if row is None:
            return run.finish()
        run.log(_shown(row), step=row["step"])

    return sink


OPENERS = {"tensorboard": _tensorboard, "wandb": _wandb}
