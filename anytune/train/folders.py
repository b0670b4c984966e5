"""Run folders: what each is, what it takes on the disk, and what of it a finished run no longer needs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anytune.errors import UserError, did_you_mean
from anytune.locks import is_locked
from anytune.train import metrics as metrics_file
from anytune.train.run_folder import read_json

RESULTS = ("adapter.gguf", "model.gguf")


@dataclass(frozen=True)
class Folder:
    """One run's folder. bytes: all of it, a file with several names counted once; checkpoint_bytes: of checkpoints."""

    path: Path
    model: str
    step: int
    total: int
    loss: float | None
    best: float | None
    result: Path | None
    running: bool
    bytes: int
    checkpoint_bytes: int

    @property
    def state(self) -> str:
        if self.running:
            return "running"
        if self.result is None:
            return "no result"
        return "finished" if self.step >= self.total else "stopped"

    def as_dict(self) -> dict[str, Any]:
        names = ("model", "step", "total", "loss", "best", "bytes", "checkpoint_bytes", "state")
        facts = {name: getattr(self, name) for name in names}
        return {"path": str(self.path), **facts, "result": self.result and str(self.result)}


def look(path: Path) -> Folder | None:
    """What is in a run's folder; None if it is none."""
    settings = read_json(path / "settings.json")
    if settings is None:
        return None
    rows = metrics_file.read(path / "metrics.jsonl")
    last = rows[-1] if rows else {}
    values = [row["val_loss"] for row in rows if isinstance(row.get("val_loss"), int | float)]
    model, total = settings.get("model"), settings.get("total_steps")
    return Folder(
        path,
        Path(model).name if isinstance(model, str) else "?",
        last.get("step", 0),
        total if isinstance(total, int) else 0,
        last.get("loss"),
        min(values, default=None),
        next((path / name for name in RESULTS if (path / name).is_file()), None),
        is_locked(path / ".lock"),
        taken(path),
        taken(path / "checkpoints"),
    )


def folders(root: Path, names: tuple[str, ...] = ()) -> list[Folder]:
    """The runs in `root`, the newest last; or those of these names. Raises UserError for a name that is none."""
    if not names:
        found = sorted(root.glob("*/settings.json"), key=lambda file: file.stat().st_mtime)
        return [run for file in found if (run := look(file.parent)) is not None]
    known = [file.parent.name for file in root.glob("*/settings.json")]
    chosen = []
    for name in names:
        places = (Path(name), root / name)
        run = next((run for place in places if (run := look(place)) is not None), None)
        if run is None:
            raise UserError(
                f"There is no run {name}: `anytune runs list` shows those in {root}.{did_you_mean(name, known)}"
            )
        chosen.append(run)
    return chosen


def taken(path: Path) -> int:
    """Bytes of the files below `path`; hard links of one file count once. Links out of it are not followed."""
    seen = {(found.st_dev, found.st_ino): found.st_size for found in _stats(path)}
    return sum(seen.values())


def _stats(path: Path) -> Iterator[Any]:
    try:
        entries = list(path.iterdir())
    except OSError:
        return
    for entry in entries:
        try:
            if entry.is_dir() and not entry.is_symlink():
                yield from _stats(entry)
            else:
                yield entry.lstat()
        except OSError:  # gone meanwhile
            continue


def needless(run: Folder, stopped: bool = False) -> list[Path]:
    """What a finished run no longer needs: its checkpoints, and the copy of its best result. stopped: of a run that
    ended before its last step, too, which can then not be continued."""
    if run.state not in (("finished", "stopped") if stopped else ("finished",)):
        return []
    found = [run.path / "checkpoints", run.path / "best.gguf"]
    return [path for path in found if path.exists() and not path.is_symlink()]


def clean(run: Folder, stopped: bool = False) -> int:
    """Remove what is needless; returns the bytes that this frees. Raises UserError."""
    before = taken(run.path)
    for path in needless(run, stopped):
        try:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        except OSError as error:
            raise UserError(f"{path} cannot be removed: {error.strerror or error}.") from None
    return before - taken(run.path)
