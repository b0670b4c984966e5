"""The studio's folder, and the names in it. No name of a person's becomes a path: folders are named by identifiers."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from anytune.errors import UserError
from anytune.files import atomic_write
from anytune.train.run_folder import read_json

IDENTIFIER = re.compile(r"[0-9]{8}-[0-9]{6}-[0-9a-f]{6}")
ABOUT = "about.json"
LONGEST = 20_000  # characters of a note


class Home:
    """jobs/<id>: runs and other work; data/<id>: data sets; adapters/<id>: imported and combined ones; bin: what was
    deleted; exports: what was written for other programs."""

    def __init__(self, root: Path):
        self.root = root.expanduser().resolve()
        self.jobs, self.data, self.adapters = (self.root / name for name in ("jobs", "data", "adapters"))
        self.bin, self.exports, self.uploads = (self.root / name for name in ("bin", "exports", "uploads"))
        try:
            for folder in (self.jobs, self.data, self.adapters, self.bin, self.exports, self.uploads):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"The studio cannot keep its files in {self.root}: {error.strerror or error}; name another "
                "folder with --home."
            ) from None

    def place(self, parent: Path, identifier: str) -> Path:
        """The folder of an identifier that came from outside. Raises UserError if there is none."""
        if not IDENTIFIER.fullmatch(identifier) or not (parent / identifier).is_dir():
            raise Missing("Not found: it may have been deleted.")
        return parent / identifier

    @contextlib.contextmanager
    def new(self, parent: Path) -> Iterator[Path]:
        """A folder that is there as a whole when the block ends, or not at all. Yields it under a temporary name;
        the name that it will have is name_of() it."""
        identifier = new_identifier()
        made = parent / f".new-{identifier}"
        made.mkdir(parents=True)
        try:
            yield made
            os.rename(made, parent / identifier)
        except BaseException:
            shutil.rmtree(made, ignore_errors=True)
            raise

    def sweep(self) -> None:
        """Take away what an earlier life left half-made."""
        for parent in (self.jobs, self.data, self.adapters):
            for left in parent.glob(".new-*"):
                shutil.rmtree(left, ignore_errors=True)

    def discard(self, folder: Path) -> None:
        """Move a folder into the bin."""
        os.rename(folder, self.bin / f"{folder.parent.name}-{folder.name}")

    def restore(self, name: str) -> str:
        """Take a folder back out of the bin; returns its identifier."""
        kind, _, identifier = name.partition("-")
        target = {"jobs": self.jobs, "data": self.data, "adapters": self.adapters}.get(kind)
        if target is None or not IDENTIFIER.fullmatch(identifier) or not (self.bin / name).is_dir():
            raise Missing("It is not in the bin.")
        os.rename(self.bin / name, target / identifier)
        return identifier

    def empty_bin(self) -> None:
        for folder in self.bin.iterdir():
            shutil.rmtree(folder, ignore_errors=True)


class Missing(UserError):
    """What was asked for is not there."""


class Conflict(UserError):
    """What was asked for cannot be done in the state that things are in."""


def new_identifier() -> str:
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"


def name_of(folder: Path) -> str:
    """The identifier of a folder that is still being made, or made."""
    return folder.name.removeprefix(".new-")


def about(folder: Path) -> dict[str, Any]:
    """What a person says of it: name and note."""
    found = read_json(folder / ABOUT) or {}
    return {"name": str(found.get("name", ""))[:200], "note": str(found.get("note", ""))[:LONGEST]}


def set_about(folder: Path, name: str | None, note: str | None) -> dict[str, Any]:
    """Keep a new name or note (None: as it was)."""
    now = about(folder)
    if name is not None:
        now["name"] = " ".join(name.split())[:200]
    if note is not None:
        now["note"] = note[:LONGEST]
    write(folder / ABOUT, now)
    return now


def write(path: Path, value: dict[str, Any]) -> None:
    """JSON, whole or not at all."""
    import json

    with atomic_write(path, "w") as file:
        json.dump(value, file, ensure_ascii=False)
