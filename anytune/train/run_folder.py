"""A run's folder: settings.json, metrics.jsonl, train.log, loss.svg, adapter.gguf or model.gguf, and checkpoints/."""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anytune.errors import UserError
from anytune.files import atomic_write
from anytune.locks import locked

MAX_SETTINGS = 16 << 20  # bytes
SCHEMA = 1  # of what is in the folder, as docs/run-folder.md says
FILES = ("settings.json", "metrics.jsonl", "train.log", "loss.svg", "adapter.gguf", "model.gguf", "best.gguf")
OURS = ("settings.json", "metrics.jsonl", "adapter.gguf", "model.gguf", "best.gguf")


def _inside(name: str) -> Any:
    """A file of the folder, as an attribute."""
    return property(lambda run: run.path / name)


@dataclass
class RunFolder:
    """Paths of one run. Held by one process at a time: see lock(). file: the name of what it makes."""

    path: Path
    checkpoints: Path
    file: str = "adapter.gguf"

    @property
    def name(self) -> str:
        return self.path.resolve().name

    settings = _inside("settings.json")
    metrics = _inside("metrics.jsonl")
    log = _inside("train.log")
    plot = _inside("loss.svg")
    best = _inside("best.gguf")

    @property
    def product(self) -> Path:
        return self.path / self.file


def new_run(run_dir: str | None, name: str, save_dir: str | None) -> RunFolder:
    """Make a fresh folder: run_dir itself, or runs/<date>-<name>[-2, -3, …] under the current folder.

    Raises UserError if run_dir or save_dir already holds another run's files, or cannot be made.
    """
    try:
        if run_dir is None:
            path = _fresh(Path("runs"), f"{time.strftime('%Y-%m-%d')}-{plain(name)}")
        else:
            path = Path(run_dir)
            refuse_other_run(path)
            path.mkdir(parents=True, exist_ok=True)
        checkpoints = Path(save_dir) if save_dir else path / "checkpoints"
        checkpoints.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"The run folder cannot be created: {error}; name another with --run-dir.") from None
    return RunFolder(path, checkpoints)


def refuse_other_run(path: Path) -> None:
    """Raise UserError if a folder holds files of a run."""
    taken = [entry for entry in OURS if (path / entry).is_file()]
    if (path / "checkpoints").is_dir() and any((path / "checkpoints").iterdir()):
        taken.append("checkpoints")
    if taken:
        raise UserError(
            f"--run-dir {path} already contains a run ({taken[0]}): name another folder, or continue it with "
            "--resume-from auto."
        )


def _fresh(parent: Path, stem: str) -> Path:
    parent.mkdir(parents=True, exist_ok=True)
    for n in range(1, 100_000):
        path = parent / (stem if n == 1 else f"{stem}-{n}")
        try:
            path.mkdir()
            return path
        except FileExistsError:
            continue
    raise OSError(f"{parent} contains too many runs named {stem}")


def plain(name: str) -> str:
    """A file name made of a title: 'Qwen 3 (1.7B)' -> 'qwen-3-1.7b'."""
    return re.sub(r"[^a-z0-9._]+", "-", name.lower()).strip("-._")[:60] or "run"


def write_json(path: Path, data: dict) -> None:
    text = json.dumps(data, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    with atomic_write(path) as file:  # half a surrogate pair, a byte of a file's name, stays what it is as an escape
        file.write(text.encode("utf-8", "backslashreplace") + b"\n")


def read_json(path: Path, limit: int = MAX_SETTINGS) -> dict | None:
    """The table in a small JSON file; None if it is missing, torn, too big or something else."""
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode) or found.st_size > limit:
            return None
        data = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None


def lock(folder: Path) -> contextlib.AbstractContextManager[None]:
    """Hold a folder for this process (see locks.locked). Raises UserError if another process holds it."""

    def busy() -> None:
        raise UserError(f"{folder} is in use by another training process: wait for it, or use another folder.")

    return locked(folder / ".lock", busy)
