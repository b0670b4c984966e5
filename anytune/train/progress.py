"""What a person sees while it runs: sentences, kept in the log too, and one moving line of numbers."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO


class Console:
    """Sentences go to `stream` and to the log; progress rows to one line that is rewritten in place.

    Where the stream is no terminal, a progress row is a plain line, at most one every `every` seconds (the
    first and the last step, and each evaluation, always). quiet: only the log. words: every sentence goes through it.
    """

    def __init__(
        self,
        stream: IO | None = None,
        *,
        quiet: bool = False,
        every: float = 5.0,
        words: Callable[[str], str] | None = None,
    ):
        self.stream = None if quiet else (stream or sys.stderr)
        self.live = bool(self.stream) and getattr(self.stream, "isatty", lambda: False)()
        self.every, self.last, self.width, self.kept = every, -1e9, 0, []
        self.log: IO | None = None
        self.words = words or str

    def log_to(self, path: Path) -> None:
        """Append to the log at `path` from now on, and what was said before."""
        try:
            self.log = open(path, "a", encoding="utf-8", errors="replace")
        except OSError:
            return  # a full disk must not stop the run
        self._record("".join(self.kept))
        self.kept = []

    def say(self, text: str) -> None:
        text = self.words(text)
        self._clear()
        self._print(text + "\n")
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        line = "".join(f"{stamp} {part}\n" for part in text.splitlines())
        if self.log is None:
            self.kept.append(line)
        else:
            self._record(line)

    def step(self, row: dict, total: int, eta: float | None, best: float | None = None) -> None:
        """row: a metrics row; total: steps of the run; eta: seconds left; best: best validation loss yet."""
        now, text = time.monotonic(), progress_line(row, total, eta, best)
        if self.live:
            columns = shutil.get_terminal_size().columns - 1
            text = text[:columns]
            self._print("\r" + text.ljust(self.width))
            self.width = len(text)
        elif now - self.last >= self.every or row["step"] in (1, total) or row["val_loss"] is not None:
            self.last = now
            self._print(text + "\n")

    def __enter__(self) -> Console:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self.width:
            self._print("\n")
            self.width = 0
        if self.log is not None:
            self.log.close()
            self.log = None

    def _clear(self) -> None:
        if self.width:
            self._print("\n")
            self.width = 0

    def _print(self, text: str) -> None:
        if self.stream is None:
            return
        try:
            self.stream.write(text)
            self.stream.flush()
        except (OSError, ValueError):
            self.stream = None  # the terminal is gone (a closed pipe, a lost session); training goes on

    def _record(self, text: str) -> None:
        try:
            self.log.write(text)
            self.log.flush()
        except (OSError, ValueError):
            pass  # a full disk must not stop the run


def progress_line(row: dict, total: int, eta: float | None, best: float | None = None) -> str:
    parts = [
        f"step {row['step']}/{total}",
        f"epoch {row['epoch']:.2f}",
        f"loss {row['loss']:.4f}",
        f"{row['tokens_per_s']:,.0f} tok/s",
        f"lr {row['lr']:.1e}",
    ]
    if eta is not None:
        parts.append(f"ETA {duration(eta)}")
    if row["val_loss"] is not None:
        parts.append(f"val {row['val_loss']:.4f}" + (" (best)" if row["val_loss"] == best else ""))
    elif best is not None:
        parts.append(f"best val {best:.4f}")
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """3700 -> '1h 01m', 70 -> '1m 10s', 5.2 -> '5s'."""
    seconds = max(0, round(seconds))
    minutes, hours = seconds // 60, seconds // 3600
    if hours:
        return f"{hours}h {minutes % 60:02d}m"
    return f"{minutes}m {seconds % 60:02d}s" if minutes else f"{seconds}s"


def size(n: int | float) -> str:
    """Bytes for people: 300 MiB, 1.5 GiB."""
    for unit in ("B", "KiB", "MiB"):
        if n < 1024:
            return f"{n:.0f} {unit}"
        n /= 1024
    return f"{n:.1f} GiB"
