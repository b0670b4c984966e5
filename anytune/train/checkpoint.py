"""Checkpoints that are whole or absent: written aside, hashed, synced, renamed; verified before use.

A checkpoint is a folder checkpoint_step_<step>:
    state.safetensors   parameters and optimizer moments
    checkpoint.json     step, place in the shuffled data, best validation so far, identity (below)
    best.gguf           the best adapter so far, if there was a validation
    manifest.json       size and sha256 of the three others
The order of the data and all random draws are functions of the seed, the epoch, the step and the micro-batch,
so these numbers are the random state. `identity` holds what must be equal for a resume to be exact: the base
file's sha256, fingerprints of the data, the exact settings and what is trained. `engine` (its name, and what
else decides how sums are rounded) is kept so that a resume stays on the engine.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from anytune.files import sync_folder
from anytune.train.run_folder import read_json
from anytune.train.settings import FLAGS
from anytune.train.tensors import Broken, Tensors, read_tensors, sha256, write_file, write_tensors

FORMAT = 1
NAME = re.compile(r"checkpoint_step_(\d{8,12})")
STATE, INFO, BEST, MANIFEST = "state.safetensors", "checkpoint.json", "best.gguf", "manifest.json"
MAX_JSON = 16 << 20


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint. info: the table of checkpoint.json."""

    path: Path
    step: int
    info: dict

    def tensors(self) -> Tensors:
        """The state, mapped tensor by tensor. Raises Broken."""
        return read_tensors(self.path / STATE)

    @property
    def best(self) -> Path | None:
        return self.path / BEST if self.info["best"] else None


def save(folder: Path, step: int, state: Mapping[str, np.ndarray], info: dict, best: Path | None) -> Path:
    """Write checkpoint `step` into `folder`; what stood there before is untouched until it is durable.

    best: file to keep with it (linked where the file system can). Raises OSError, having cleaned up.
    """
    final = folder / f"checkpoint_step_{step:08d}"
    temp = folder / f".{final.name}.tmp{os.getpid()}"
    sweep(folder)
    temp.mkdir()
    try:
        text = json.dumps(dict(info, step=step), indent=1, sort_keys=True, allow_nan=False).encode()
        files = {STATE: write_tensors(temp / STATE, state), INFO: write_file(temp / INFO, [text])}
        if best is not None:
            files[BEST] = _link(best, temp / BEST)
        rows = {name: {"size": size, "sha256": digest} for name, (size, digest) in files.items()}
        manifest = json.dumps({"format": FORMAT, "files": rows}, indent=1, sort_keys=True).encode()
        write_file(temp / MANIFEST, [manifest])
        sync_folder(temp)
        if final.exists():  # an earlier life's checkpoint of this very step, torn or about to be equal
            os.rename(final, folder / f".{final.name}.old{os.getpid()}")
        os.rename(temp, final)
        sync_folder(folder)
    except BaseException:
        shutil.rmtree(temp, ignore_errors=True)
        raise
    return final


def _link(source: Path, target: Path) -> tuple[int, str]:
    """Put the file there without its bytes if possible. Files of a run are replaced, never changed."""
    try:
        os.link(source, target)
        return target.stat().st_size, sha256(target)
    except OSError:
        return write_file(target, [np.fromfile(source, np.uint8)])


def load(path: Path) -> Checkpoint:
    """Verify a checkpoint: manifest, sizes, hashes, shape of its numbers. Raises Broken, saying what."""

    def bad(problem: str) -> Broken:
        return Broken(f"{path} is not a valid checkpoint: {problem}; use another one, or --resume-from auto.")

    manifest = read_json(path / MANIFEST, MAX_JSON)
    if manifest is None or not isinstance(manifest.get("files"), dict):
        raise bad(f"{MANIFEST} is missing or damaged")
    if manifest.get("format") != FORMAT:
        raise bad(f"its format is {str(manifest.get('format'))[:20]}, this program writes and reads {FORMAT}")
    files = manifest["files"]
    if not {STATE, INFO} <= set(files) <= {STATE, INFO, BEST}:
        raise bad(f"{MANIFEST} lists other files than {STATE}, {INFO} and {BEST}")
    for name, row in files.items():
        try:
            found, row = os.lstat(path / name), row if isinstance(row, dict) else {}
            if not stat.S_ISREG(found.st_mode) or found.st_size != row.get("size"):
                raise bad(f"{name} does not have the size given in {MANIFEST}")
            if sha256(path / name) != row.get("sha256"):
                raise bad(f"{name} does not match the hash in {MANIFEST}")
        except OSError as error:
            raise bad(f"{name} cannot be read ({error.strerror})") from None
    info = read_json(path / INFO, MAX_JSON)
    if info is None:
        raise bad(f"{INFO} is not a JSON object")
    for key, holds in SHAPE.items():
        if key not in info or not holds(info[key]):
            raise bad(f"{INFO} has no valid {key!r}")
    if (info["best"] is None) != (BEST not in files):
        raise bad(f"{INFO} and {BEST} contradict each other")
    return Checkpoint(path, info["step"], info)


def _count(value) -> bool:
    return type(value) is int and 0 <= value < 2**53


#: what checkpoint.json must hold
SHAPE: dict[str, Callable[[object], bool]] = {
    "step": _count,
    "position": lambda v: isinstance(v, dict) and all(map(_count, v.values())),
    "best": lambda v: (
        v is None or (isinstance(v, dict) and _count(v.get("step")) and isinstance(v.get("val_loss"), float))
    ),
    "waited": _count,
    "pending": lambda v: v is None or isinstance(v, dict),
    "run_id": lambda v: isinstance(v, str),
    "run": lambda v: isinstance(v, str),
    "identity": lambda v: isinstance(v, dict),
    "engine": lambda v: isinstance(v, dict),
}


def is_one(folder: Path) -> bool:
    """Whether a folder is a checkpoint, by its name or by what it holds, good or not."""
    return NAME.fullmatch(folder.resolve().name) is not None or (folder / MANIFEST).exists()


def listing(folder: Path) -> list[Path]:
    """Checkpoints in a folder by name, newest step first, good or not."""
    try:
        found = [(int(m[1]), p) for p in folder.iterdir() if (m := NAME.fullmatch(p.name)) and p.is_dir()]
    except OSError:
        return []
    return [path for _, path in sorted(found, reverse=True)]


def newest(folder: Path, say: Callable[[str], None]) -> Checkpoint | None:
    """The newest good checkpoint of a folder; `say` is called with each one that was skipped."""
    for path in listing(folder):
        try:
            return load(path)
        except Broken as error:
            say(f"Skipping it: {error}")
    return None


def prune(folder: Path, keep: int, current: Path) -> None:
    """Remove all but the `keep` last whole checkpoints, `current` (just written) among them.

    Later steps than the current one belong to a future that a resume gave up. Never raises OSError.
    """
    step = int(NAME.fullmatch(current.name)[1])
    left = keep - 1
    for path in listing(folder):
        if path.name == current.name:
            continue
        if int(NAME.fullmatch(path.name)[1]) < step and left > 0 and _looks_whole(path):
            left -= 1
            continue
        try:
            os.rename(path, folder / f".{path.name}.old{os.getpid()}")
        except OSError:
            continue
    sweep(folder)


def _looks_whole(path: Path) -> bool:
    """Sizes as promised: enough to decide what to keep, and cheap (hashes are for use)."""
    manifest = read_json(path / MANIFEST, MAX_JSON) or {}
    try:
        return all((path / name).stat().st_size == row["size"] for name, row in manifest["files"].items())
    except (OSError, KeyError, TypeError, AttributeError):
        return False


def sweep(folder: Path) -> None:
    """Remove what killed saves and removals left behind. The folder is locked by this run."""
    for path in folder.glob(".checkpoint_step_*"):
        shutil.rmtree(path, ignore_errors=True)


def differences(then: dict, now: dict) -> list[str]:
    """What differs between two identities, one phrase each, naming flags."""
    out = []
    for key, label in LABELS.items():
        if then.get(key) != now.get(key):
            out.append(f"{label} ({_apart(then.get(key), now.get(key))})")
    for key, names in (("settings", FLAGS), ("trainee", {})):
        old, new = then.get(key), now.get(key)
        old, new = (old if isinstance(old, dict) else {}), (new if isinstance(new, dict) else {})
        for name in sorted(set(old) | set(new)):
            if old.get(name) != new.get(name):
                label = names.get(name) or SPEC_FLAGS.get(name) or name
                out.append(f"{label} ({_apart(old.get(name), new.get(name))})")
    return out


LABELS = {
    "base": "the base model's file",
    "data": "the training data or its tokenization",
    "validation": "the validation data or its tokenization",
}
SPEC_FLAGS = {
    "rank": "--lora-rank",
    "alpha": "--lora-alpha",
    "modules": "--lora-modules",
    "rslora": "--rslora",
    "plus_ratio": "--lora-plus-ratio",
    "dropout": "--lora-dropout",
    "seed": "--lora-seed",
}


def _apart(then: Any, now: Any) -> str:
    """Both values; of long lists from the first item that differs."""
    texts = [value if isinstance(value, str) else json.dumps(value) for value in (then, now)]
    same = os.path.commonprefix(texts).rfind(",") + 1
    if same and max(map(len, texts)) > 60:
        texts = ["…" + text[same:] for text in texts]
    return "{} then, {} now".format(*map(_short, texts))


def _short(text: str) -> str:
    if re.fullmatch(r"[0-9a-f]{64}", text):
        return text[:12] + "…"
    return text if len(text) <= 60 else text[:57] + "…"
