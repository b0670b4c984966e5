"""The points of a run: metrics.jsonl as columns, the end of a growing file, and fewer points for a wide view."""

from __future__ import annotations

import json
import os
from array import array
from pathlib import Path
from typing import Any

NAMES = ("step", "epoch", "loss", "val_loss", "lr", "grad_norm", "tokens", "tokens_per_s", "rss_bytes")
PIECE = 4 << 20  # bytes parsed at once
NAN = float("nan")


class Series:
    """The columns of a run so far: name -> array of doubles (NaN: none). Steps grow by one from row to row."""

    def __init__(self, path: Path):
        self.path, self.columns = path, {name: array("d") for name in NAMES}
        self.end = 0  # bytes that were taken in
        self.last = b""  # the last line that was, to see whether the file was cut back and rewritten

    def __len__(self) -> int:
        return len(self.columns["step"])

    @property
    def step(self) -> int:
        """The last step, 0 before the first."""
        return int(self.columns["step"][-1]) if len(self) else 0

    def follow(self) -> int | None:
        """Take in what was appended; returns the last step that stayed if the run went back, else None."""
        back = None
        try:
            with open(self.path, "rb", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size
                if self.end and (size < self.end or not self._still_there(file)):
                    back = self._go_back(file)
                file.seek(self.end)
                while piece := file.read(PIECE):
                    whole = piece.rfind(b"\n") + 1
                    if not whole or not self._take(piece[:whole]):
                        break
                    file.seek(self.end)
        except FileNotFoundError:
            pass
        return back

    def _still_there(self, file: Any) -> bool:
        file.seek(self.end - len(self.last))
        return file.read(len(self.last)) == self.last

    def _go_back(self, file: Any) -> int:
        """Read everything again; returns the last step up to which nothing has changed."""
        before, self.columns = self.columns, {name: array("d") for name in NAMES}
        self.end, self.last = 0, b""
        file.seek(0)
        while piece := file.read(PIECE):
            whole = piece.rfind(b"\n") + 1
            if not whole or not self._take(piece[:whole]):
                break
            file.seek(self.end)
        same = 0
        for a, b in zip(before["loss"], self.columns["loss"], strict=False):
            if a != b:
                break
            same += 1
        return same

    def _take(self, lines: bytes) -> bool:
        """Append whole lines; False where one is no row, at which reading ends."""
        table = _columns(lines)
        if table is None:
            return False
        for name in NAMES:
            self.columns[name].extend(table[name])
        self.end += len(lines)
        self.last = lines[lines.rfind(b"\n", 0, -1) + 1 :]
        return True

    def after(self, step: int) -> list[list[float | None]]:
        """Rows (in the order of NAMES) of later steps."""
        first = self.index(step + 1)
        return [[_number(self.columns[name][i]) for name in NAMES] for i in range(first, len(self))]

    def index(self, step: int) -> int:
        """Where `step` is, or would."""
        low, high, steps = 0, len(self), self.columns["step"]
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if steps[middle] < step else (low, middle)
        return low

    def view(self, first: int, last: int, points: int) -> dict[str, list[float | None]]:
        """Columns of steps first to last, at most about 2 * points of them.

        Of each stretch the rows with the lowest and the highest loss stay, so that no spike is lost, and every row with
        a validation.
        """
        low, high = self.index(first), self.index(last + 1)
        loss, val = self.columns["loss"], self.columns["val_loss"]
        if high - low <= 2 * points:
            chosen: list[int] = list(range(low, high))
        else:
            kept = {low, high - 1}
            for k in range(points):
                a, b = low + (high - low) * k // points, low + (high - low) * (k + 1) // points
                part = loss[a:b]
                kept.add(a + part.index(min(part)))
                kept.add(a + part.index(max(part)))
            kept.update(i for i in range(low, high) if val[i] == val[i])
            chosen = sorted(kept)
        return {name: [_number(column[i]) for i in chosen] for name, column in self.columns.items()}


def _columns(lines: bytes) -> dict[str, array] | None:
    """Columns of whole lines; None where one is no row of metrics."""
    try:
        rows = json.loads(b"[" + lines.strip().replace(b"\n", b",") + b"]")
        table = {name: [row[name] for row in rows] for name in NAMES}
        return {
            name: array("d", [NAN if value is None else value for value in column] if None in column else column)
            for name, column in table.items()
        }
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def rough(path: Path, points: int) -> dict[str, list[float | None]] | None:
    """A view of a long run from a line here and there, at once: the whole takes a second to read."""
    found: dict[str, array] = {name: array("d") for name in NAMES}
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        for k in range(points):
            file.seek(size * k // points)
            piece = file.read(1024)
            start = piece.find(b"\n") + 1 if k else 0
            line = piece[start : piece.find(b"\n", start) + 1]
            table = _columns(line) if line else None
            if table is not None and (not found["step"] or table["step"][0] > found["step"][-1]):
                for name in NAMES:
                    found[name].extend(table[name])
    return {name: [_number(value) for value in column] for name, column in found.items()}


def last_row(path: Path) -> dict[str, Any]:
    """The last whole row of a metrics file; {} if there is none."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 4096))
            lines = file.read().split(b"\n")[:-1]
            row = json.loads(lines[-1]) if lines else {}
        return row if isinstance(row, dict) else {}
    except (OSError, ValueError, RecursionError):
        return {}


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    if value != value:
        return None
    return int(value) if value.is_integer() and abs(value) < 1e15 else value
