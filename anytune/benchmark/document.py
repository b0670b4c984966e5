"""The results as one JSON document that can be shared: what was measured, on what, and how to measure it again."""

from __future__ import annotations

import datetime
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anytune.errors import UserError
from anytune.files import atomic_write

from .machine import machine, versions
from .cases import Settings

FORMAT, VERSION = "anytune-bench", 1
MOST = 16 << 20  # bytes of a file that is read
_TEXT = {"model": str, "test": str, "device": str}
_NUMBERS = ("tokens_per_s", "min", "max", "peak_bytes", "estimate_bytes")


def begin(command: Sequence[str], settings: Settings, models: Sequence[Path]) -> dict[str, Any]:
    """A document without results. The models' files are read once, for their hashes."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "command": " ".join(command),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": machine(),
        "versions": versions(),
        "settings": settings.shown(),
        "models": [described(path) for path in models],
        "results": [],
        "interrupted": False,
    }


def described(path: Path) -> dict[str, Any]:
    from anytune.gguf import GGUF
    from anytune.quantization.filetypes import FILE_TYPES

    with GGUF.open(path) as gguf:
        numbers = {kind.number: name for name, kind in FILE_TYPES.items()}
        sizes: dict[str, int] = {}
        for info in gguf.tensors.values():
            sizes[info.type.name] = sizes.get(info.type.name, 0) + info.nbytes
        named = numbers.get(gguf.metadata.get("general.file_type", -1))
        return {
            "file": path.name,
            "sha256": gguf.sha256(),
            "bytes": path.stat().st_size,
            "architecture": str(gguf.metadata.get("general.architecture")),
            "parameters": gguf.n_parameters,
            "type": named or max(sizes, key=sizes.get, default="none"),
        }


def add(document: dict[str, Any], row: dict[str, Any], *known: Path) -> None:
    """Append a result; what it says in words loses the folders of this machine."""
    problem = row["problem"] and without_folders(row["problem"], *known)
    document["results"].append({**row, "problem": problem})


def without_folders(text: str, *known: Path) -> str:
    """`text` with paths cut to their last part: folders carry people's names."""
    for path in known:
        text = text.replace(str(path), path.name)
    return re.sub(r"(?<![\w.])(?:[A-Za-z]:|~)?(?:[/\\][^\s/\\:'\"()]+)+[/\\]([^\s/\\:'\"()]*)", r"\1", text)


def save(document: dict[str, Any], path: Path) -> None:
    """Write the whole file. Raises OSError."""
    with atomic_write(path, "w") as file:
        file.write(text(document) + "\n")


def text(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)


def load(path: Path) -> dict[str, Any]:
    """A document that save() wrote. Raises UserError for anything else: the file may come from anybody."""
    try:
        with open(path, "rb") as file:
            raw = file.read(MOST + 1)
        document = json.loads(raw) if len(raw) <= MOST else None
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict) or document.get("format") != FORMAT or document.get("version") != VERSION:
        raise UserError(
            f"{path} is not a result of anytune bench, or of another version: create one with anytune bench … -o FILE."
        )
    for name, kind in (("machine", dict), ("versions", dict), ("settings", dict), ("models", list), ("results", list)):
        if not isinstance(document.get(name), kind):
            raise UserError(f"{path} is damaged: its {name!r} is missing.")
    for number, row in enumerate(document["results"]):
        if not isinstance(row, dict) or not _sound(row):
            raise UserError(f"{path} is damaged: result {number} is malformed.")
    if not all(isinstance(m, dict) and isinstance(m.get("file"), str) for m in document["models"]):
        raise UserError(f"{path} is damaged: its models are malformed.")
    return document


def _sound(row: dict[str, Any]) -> bool:
    numbers = [row.get(name) for name in _NUMBERS]
    rounds = row.get("rounds")
    within = [row.get(name, []) for name in ("first_token_s", "peak", "lowest")]  # since version 0.2
    return (
        all(isinstance(row.get(name), kind) for name, kind in _TEXT.items())
        and all(n is None or _positive(n) for n in numbers)
        and isinstance(rounds, list)
        and all(map(_positive, rounds))
        and all(isinstance(some, list) and all(n is None or _positive(n) for n in some) for some in within)
        and isinstance(row.get("problem"), (str, type(None)))
        and isinstance(row.get("threads"), (int, type(None)))
        and (row.get("tokens_per_s") is None or (row.get("min") is not None and row.get("max") is not None))
    )


def _positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 1e30 and math.isfinite(value)
