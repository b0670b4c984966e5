"""Data sets: data/<id> holds data.json and every version's file. A version's file never changes."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from typing import Any

from anytune.errors import UserError
from anytune.files import atomic_write, copy, sync_folder
from anytune.studio.home import Conflict, Home, Missing, about, name_of, set_about, write
from anytune.text.examine import line_by_line
from anytune.text.rows import DataFile
from anytune.train.run_folder import read_json

SUFFIXES = re.compile(r"(\.(jsonl|ndjson|json|txt|md|csv|tsv|parquet))?(\.gz)?$", re.IGNORECASE)
READING = {"format": "auto", "columns": None, "loss": "auto", "overflow": None}


def suffix_of(name: str) -> str:
    """The part of a person's file name that says what is in it; the rest never becomes a path."""
    match = SUFFIXES.search(name)
    return match[0].lower() if match else ""


def create(home: Home, upload: Path, name: str) -> str:
    """A data set of an uploaded file; returns its identifier."""
    suffix = suffix_of(name)
    with home.new(home.data) as made:
        file = f"v1{suffix}"
        link_or_copy(upload, made / file)  # the upload stays until the data set is there as a whole
        sync_folder(made)
        version = {"number": 1, "file": file, "created": time.time(), "change": "uploaded"}
        write(
            made / "data.json",
            {"id": name_of(made), "created": time.time(), "versions": [version], "reading": READING, "val_split": 0.0},
        )
        set_about(made, name, None)
        identifier = name_of(made)
    return identifier


def describe(folder: Path) -> dict[str, Any]:
    """What lists show of a data set; versions without their files' names."""
    found = read_json(folder / "data.json")
    if found is None:
        raise Missing("This data set cannot be read: its description is missing.")
    versions = [
        {key: version[key] for key in ("number", "created", "change")} | {"bytes": _size(folder / version["file"])}
        for version in found["versions"]
    ]
    return {
        "id": folder.name,
        "created": found["created"],
        "versions": versions,
        "reading": found["reading"],
        "val_split": found.get("val_split", 0.0),
        **about(folder),
    }


def file_of(folder: Path, number: int | None = None) -> tuple[Path, int]:
    """(file, number) of a version, the newest if none is named. Raises Missing."""
    found = read_json(folder / "data.json") or {"versions": []}
    versions = {version["number"]: version["file"] for version in found["versions"]}
    number = max(versions, default=0) if number is None else number
    if number not in versions:
        raise Missing("There is no such version of the data.")
    return folder / versions[number], number


def set_reading(folder: Path, reading: dict[str, Any], val_split: float) -> None:
    found = read_json(folder / "data.json") or {}
    write(folder / "data.json", found | {"reading": READING | reading, "val_split": val_split})


def edit(folder: Path, number: int, changes: dict[int, str | None]) -> int:
    """A new version with some lines changed (None: taken out); returns its number. Raises UserError."""
    source, _ = file_of(folder, number)
    for line, text in changes.items():
        if text is not None:
            _check(line, text)
    found = read_json(folder / "data.json") or {}
    new = max(version["number"] for version in found["versions"]) + 1
    file = f"v{new}{suffix_of(source.name).removesuffix('.gz') or '.jsonl'}"
    seen = set()
    if DataFile(source).plain or not line_by_line(source):
        raise Conflict("Single examples can be changed only if each is on its own line (JSONL), unlike in this file.")
    with atomic_write(folder / file) as out:
        for line, text in DataFile(source, "plain").lines():
            if line in changes:
                seen.add(line)
                text = "" if changes[line] is None else " ".join(changes[line].splitlines()) + "\n"
            out.write(text.encode())
    if seen != set(changes):
        (folder / file).unlink()
        raise UserError(f"There is no line {min(set(changes) - seen)} in this data.")
    taken = sum(text is None for text in changes.values())
    words = [f"{len(changes) - taken} changed"] * (len(changes) > taken) + [f"{taken} removed"] * (taken > 0)
    found["versions"].append({"number": new, "file": file, "created": time.time(), "change": ", ".join(words)})
    write(folder / "data.json", found)
    return new


def link_or_copy(source: Path, target: Path) -> None:
    """The same bytes in another place, without their copy where the disk can."""
    try:
        os.link(source, target)
    except OSError:
        copy(source, target)


def _check(line: int, text: str) -> None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"Line {line} would not be valid JSON ({str(error)[:100]}).") from None
    if not isinstance(found, dict):
        raise UserError(f"Line {line} must stay one JSON object.")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
