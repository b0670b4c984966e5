"""metrics.jsonl: one line an optimizer step, appended and flushed; cut back to the resumed step on resume."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

#: step (from 1); epoch: epochs done after it; loss: mean nats per loss token of the step, before its update;
#: val_loss: the same over the validation set, after the update (null: not evaluated); lr; grad_norm before
#: clipping; tokens and loss_tokens of this step; tokens_per_s and seconds of this step; rss_bytes of the
#: process now. Of a mixture of experts, on average over layers and micro-batches: expert_peak, how many times the mean
#: the fullest expert's tokens were; expert_idle, the share of experts without a token.
COLUMNS = (
    "step",
    "epoch",
    "loss",
    "val_loss",
    "lr",
    "grad_norm",
    "tokens",
    "loss_tokens",
    "tokens_per_s",
    "rss_bytes",
    "seconds",
    "expert_peak",
    "expert_idle",
)
LATER = {"seconds", "expert_peak", "expert_idle"}  # columns that rows of older versions, or of dense models, lack


class MetricsFile:
    """Appends rows to a file. A full disk costs rows, never the run: `warn` is called once."""

    def __init__(self, path: Path, keep_through: int = 0, warn: Callable[[str], None] = print):
        """keep_through: rows of later steps, and a torn last line, are cut off first."""
        self.path, self.warn, self.warned = path, warn, False
        self.file = open(path, "ab", buffering=0)
        good = 0
        for row, end in _rows(path):
            if row["step"] > keep_through:
                break
            good = end
        self.file.truncate(good)
        self.end = good

    def append(self, row: dict) -> None:
        line = json.dumps({name: _finite(row[name]) for name in COLUMNS if name in row}).encode() + b"\n"
        try:
            written = self.file.write(line)
            if written != len(line):
                raise OSError(None, "a line could be written only partly")
            self.end += len(line)
        except OSError as error:
            if not self.warned:
                self.warn(f"{self.path} cannot be written ({error.strerror}); training continues without it.")
            self.warned = True
            self._cut()

    def _cut(self) -> None:
        try:
            self.file.truncate(self.end)
        except OSError:
            pass  # the next resume cuts a torn line off

    def sync(self) -> None:
        """Make what was appended durable: done before a checkpoint that counts on these rows."""
        try:
            os.fsync(self.file.fileno())
        except OSError:
            pass  # a metrics file on a bad disk must not stop the run; the checkpoint's own sync will tell

    def close(self) -> None:
        self.file.close()


def read(path: Path) -> list[dict]:
    """All whole rows of a metrics file; [] if there is none."""
    return [row for row, _ in _rows(path)] if path.exists() else []


def sound(row: dict, step: int) -> bool:
    """Whether a row from outside is one that this program wrote for `step`, its val_loss still missing."""
    numbers = [value for name, value in row.items() if name != "val_loss"]
    return (
        set(COLUMNS) - LATER <= set(row) <= set(COLUMNS)
        and row["step"] == step
        and row["val_loss"] is None
        and all(type(value) in (int, float) for value in numbers)
    )


def _rows(path: Path) -> Iterator[tuple[dict, int]]:
    """(row, offset of the line's end) up to the first line that is torn or is no row."""
    end = 0
    with open(path, "rb") as file:
        for line in file:
            end += len(line)
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                return
            if not line.endswith(b"\n") or not isinstance(row, dict) or type(row.get("step")) is not int:
                return
            yield row, end


def _finite(value):
    """JSON has no NaN or infinity; a row that stopped a run says null there."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
