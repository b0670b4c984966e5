"""What a model of a store is: read from its header once, and remembered by file, size and time."""

from __future__ import annotations

import contextlib
import json
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anytune.errors import UserError
from anytune.files import atomic_write
from anytune.hub.cache import home
from anytune.hub.dialect import ollamas_own, sentence
from anytune.hub.stored import Stored, title

FORM = 1  # of what is remembered


@dataclass(frozen=True)
class Facts:
    """kind: "model", "adapter" or another of general.type, "" where the file cannot be read; reason: why it cannot be
    trained, None: it can."""

    kind: str
    title: str = ""
    architecture: str = ""
    type: str = ""
    parameters: int = 0
    context: int = 0
    chat_template: bool = False
    reason: str | None = None


class Memory:
    """Facts by file, kept in the cache folder; a file that has changed is read again."""

    def __init__(self) -> None:
        self.path, self.rows, self.new = home() / "models.json", {}, False
        with contextlib.suppress(OSError, ValueError, RecursionError):
            found = json.loads(self.path.read_bytes())
            if found.get("form") == self._form():
                self.rows = {key: Facts(**row) for key, row in found["rows"].items()}

    @staticmethod
    def _form() -> str:
        import anytune
        from anytune.model.config import ARCHITECTURES

        return f"{FORM} {anytune.__version__} {' '.join(ARCHITECTURES)}"

    def facts(self, model: Stored) -> Facts:
        """Raises OSError if the file has gone meanwhile."""
        status = os.stat(model.path)
        key = f"{model.path} {status.st_size} {status.st_mtime_ns}"
        if key not in self.rows:
            self.rows[key], self.new = look(model), True
        return self.rows[key]

    def keep(self) -> None:
        """Write what was read newly; a folder that cannot be written costs only the time to read again."""
        if self.new:
            with contextlib.suppress(OSError):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with atomic_write(self.path, "w") as file:
                    json.dump({"form": self._form(), "rows": {key: vars(row) for key, row in self.rows.items()}}, file)


def look(model: Stored) -> Facts:
    """The facts of one model, from its (first) file's header."""
    from anytune.gguf import GGUF

    if len(model.paths) > 1 or not model.whole:
        missing = "" if model.whole else ", of which some are missing"
        return Facts(
            "model",
            title(model.paths),
            reason=f"in {len(model.paths)} parts{missing}: join them with llama-gguf-split --merge",
        )
    try:
        with GGUF.open(model.path) as gguf:
            return _read(gguf)
    except UserError as error:
        return Facts("", reason=_short(str(error), model.path))


def _read(gguf: Any) -> Facts:
    meta = gguf.metadata
    architecture = meta.get("general.architecture", "")
    kind = str(meta.get("general.type", "model"))
    if architecture == "clip":
        kind = "mmproj"
    context = meta.get(f"{architecture}.context_length", 0)
    sizes: Counter[str] = Counter()
    for info in gguf.tensors.values():
        sizes[info.type.name] += info.nbytes
    return Facts(
        kind,
        str(meta.get("general.name") or ""),
        architecture,
        _type(meta, sizes),
        gguf.n_parameters,
        context if isinstance(context, int) else 0,
        "tokenizer.chat_template" in meta,
        _reason(gguf),
    )


def _type(meta: dict[str, Any], sizes: Counter[str]) -> str:
    """The file's type by its own number, as people name it; else the type of most of its bytes."""
    from anytune.quantization.filetypes import FILE_TYPES

    number = meta.get("general.file_type")
    named = next((name for name, found in FILE_TYPES.items() if number is not None and found.number == number), None)
    return named or (sizes.most_common(1)[0][0] if sizes else "")


def _reason(gguf: Any) -> str | None:
    """Why a model cannot be trained, in a clause; None: it can."""
    from anytune.model import Lora
    from anytune.model.config import read_config

    if (what := ollamas_own(gguf.metadata, gguf.tensors)) is not None:
        return sentence(what)
    try:
        Lora().tensors(gguf, read_config(gguf).layers)
    except UserError as error:
        return _short(str(error), gguf.path)
    return None


def _short(text: str, path: Path) -> str:
    """A sentence without the file's name before it."""
    for name in (str(path), path.name):
        text = text.removeprefix(f"{name}: ").removeprefix(f"{name} ")
    return text
