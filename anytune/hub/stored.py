"""One model in one of the stores, and what their file names say."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.IGNORECASE)
BESIDE = re.compile(r"mmproj|imatrix|(^|[-_.])(draft|eagle3?|mtp)([-_.]|$)", re.IGNORECASE)
MOST = 10_000  # files looked at in one store


@dataclass(frozen=True)
class Stored:
    """name: what -m takes; store: whose it is; paths: the file, or its parts in order; whole: no part is missing;
    also: other names of the same file."""

    name: str
    store: str
    paths: tuple[Path, ...]
    whole: bool = True
    also: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        return self.paths[0]


def beside(name: str) -> bool:
    """Whether a file of this name only goes with a model: a projector, importances, a draft model."""
    return bool(BESIDE.search(Path(name).name))


def gguf_files(folder: Path, depth: int = 4) -> Iterator[Path]:
    """Files *.gguf below `folder`, sorted, links followed for files only; nothing where it cannot be read."""
    seen = 0
    for root, folders, files in os.walk(folder):
        if len(Path(root).relative_to(folder).parts) >= depth:
            folders.clear()
        folders.sort()
        for name in sorted(files):
            if name.lower().endswith(".gguf") and not beside(name):
                yield Path(root) / name
                seen += 1
                if seen >= MOST:
                    return


def joined(files: Iterable[Path]) -> list[tuple[tuple[Path, ...], bool]]:
    """Files with the parts of one model together -> (paths in order, whether all are there)."""
    alone: list[tuple[tuple[Path, ...], bool]] = []
    parts: dict[tuple[Path, str, int], dict[int, Path]] = {}
    for path in files:
        match = PART.fullmatch(path.name)
        if match is None or int(match[3]) < 2:
            alone.append(((path,), True))
        else:
            parts.setdefault((path.parent, match[1], int(match[3])), {})[int(match[2])] = path
    for (_, _, count), found in parts.items():
        alone.append((tuple(path for _, path in sorted(found.items())), set(found) == set(range(1, count + 1))))
    return alone


def title(paths: tuple[Path, ...]) -> str:
    """A model's file name, without its part's number."""
    match = PART.fullmatch(paths[0].name)
    return f"{match[1]}.gguf" if match and len(paths) > 1 else paths[0].name


def one_row_each(models: Iterable[Stored]) -> list[Stored]:
    """Models without repetitions: a file that several stores link to is one row, under the first of its names."""
    rows: dict[tuple[int, int], Stored] = {}
    for model in models:
        try:
            status = os.stat(model.path)
        except OSError:
            continue  # a link to nothing, or a folder that may not be read
        key = (status.st_dev, status.st_ino)
        if key in rows:
            rows[key] = replace(rows[key], also=(*rows[key].also, model.name))
        else:
            rows[key] = model
    return list(rows.values())
