"""What a run on this machine is doing, read from its folder: also one that another program started, or that is over."""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anytune.errors import UserError
from anytune.locks import is_locked
from anytune.train import metrics
from anytune.train.progress import progress_line, size
from anytune.train.run_folder import read_json
from anytune.train.timing import Timing

LOG_LINES = 8
CHART_WIDTH, CHART_HEIGHT = 72, 12
_EIGHTHS = "▁▂▃▄▅▆▇█"


def find_run(name: str | None, root: Path = Path("runs")) -> Path:
    """The run's folder: `name` as a path or a folder below `root`; None: the one that was written last.

    Raises UserError where there is none."""
    if name is not None:
        for path in (Path(name), root / name):
            if (path / "settings.json").is_file():
                return path
        raise UserError(f"{name} is not a run folder (it has no settings.json): name one created by `anytune train`.")
    found = [(file.stat().st_mtime, file.parent) for file in root.glob("*/settings.json")]
    found += [(file.stat().st_mtime, file.parent) for file in root.glob("*/metrics.jsonl")]
    if not found:
        raise UserError(f"There is no run in {root}/: name a run folder.")
    return max(found)[1]


@dataclass
class RunView:
    """A run as its folder shows it. update() reads what is new."""

    path: Path

    def __post_init__(self) -> None:
        self.update()

    def update(self) -> None:
        self.settings = read_json(self.path / "settings.json") or {}
        self.running = is_locked(self.path / ".lock")
        self.rows = metrics.read(self.path / "metrics.jsonl")

    @property
    def total_steps(self) -> int:
        total = self.settings.get("total_steps")
        return total if isinstance(total, int) and not isinstance(total, bool) and total > 0 else 0

    @property
    def state(self) -> str:
        """running, finished or stopped."""
        if self.running:
            return "running"
        return "finished" if self.rows and self.rows[-1]["step"] >= self.total_steps else "stopped"

    @property
    def eta_seconds(self) -> float | None:
        """Seconds to the end at the rate of late; None where no step is known."""
        if not self.rows or not self.total_steps:
            return None
        left = self.total_steps - self.rows[-1]["step"]
        late = self.rows[-20:]
        return left * Timing.of(late).seconds / len(late)

    def log(self, lines: int = LOG_LINES) -> list[str]:
        """The last lines of train.log, without control characters."""
        try:
            with open(self.path / "train.log", "rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 16384))
                text = file.read().decode("utf-8", "replace")
        except OSError:
            return []
        clean = ("".join(c for c in line if c.isprintable() or c == "\t") for line in text.splitlines())
        return list(deque((line for line in clean if line.strip()), lines))

    def as_dict(self) -> dict[str, Any]:
        timing = Timing.of(self.rows)
        return {
            "run": str(self.path),
            "state": self.state,
            "total_steps": self.total_steps,
            "eta_seconds": self.eta_seconds if self.running else None,
            "timing": timing and timing.as_dict(),
            "last": self.rows[-1] if self.rows else None,
            "log": self.log(),
        }

    def text(self) -> str:
        """A screen for people: state, progress, loss, log."""
        lines = [f"{self.path}  {self.state}"]
        if self.rows:
            row, timing = self.rows[-1], Timing.of(self.rows)
            measured = [r["val_loss"] for r in self.rows if r.get("val_loss") is not None]
            lines += [
                progress_line(
                    row, self.total_steps, self.eta_seconds if self.running else None, min(measured, default=None)
                ),
                f"{timing.text()}   memory {size(row['rss_bytes'])}",
                "",
                *loss_chart(self.rows),
            ]
        else:
            lines.append("no step has finished yet")
        log = self.log()
        return "\n".join([*lines, *(["", *log] if log else [])])


def loss_chart(rows: list[dict[str, Any]], width: int = CHART_WIDTH, height: int = CHART_HEIGHT) -> list[str]:
    """Training loss over steps as `height` lines of blocks, each column the mean of its steps."""
    points = [(row["step"], row["loss"]) for row in rows if isinstance(row.get("loss"), (int, float))]
    if not points:
        return []
    first, last = points[0][0], points[-1][0]
    width = min(width, len(points))
    columns: list[list[float]] = [[] for _ in range(width)]
    for step, loss in points:
        columns[min(width - 1, (step - first) * width // max(1, last - first + 1))].append(loss)
    means = [sum(values) / len(values) if values else None for values in columns]
    known = [mean for mean in means if mean is not None]
    low, high = min(known), max(known)
    span = (high - low) or 1.0
    filled = [None if mean is None else max(1, round((mean - low) / span * height * 8)) for mean in means]
    lines = []
    for level in range(height - 1, -1, -1):
        label = f"{high:.4g}" if level == height - 1 else f"{low:.4g}" if level == 0 else ""
        bars = "".join(" " if n is None or n <= 8 * level else _EIGHTHS[min(7, n - 8 * level - 1)] for n in filled)
        lines.append(f"{label:>8} │{bars}".rstrip())
    return [*lines, f"{'':>8} └{'─' * width}", f"{'':>10}step {first} … {last}"]


def watch(path: Path, every: float) -> Iterator[RunView]:
    """The run's view now, and again every so many seconds until it is not running."""
    view = RunView(path)
    yield view
    while view.running:
        with contextlib.suppress(KeyboardInterrupt):
            time.sleep(every)
            view.update()
            yield view
            continue
        return
