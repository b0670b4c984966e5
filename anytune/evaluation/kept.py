"""What an evaluation has answered so far, in a file beside its report, so that an interrupted one goes on where it was.

The first line says what the answers depend on; each further line is one batch. A file that says something else, or
whose end was cut off, counts only as far as it is right. When the report is written the file goes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from anytune.files import atomic_write

if TYPE_CHECKING:
    from anytune.adapter.adapter import Adapter
    from anytune.model import Model

SUFFIX = ".answers.jsonl"


def identity(model: Model, adapters: Mapping[str, Adapter | None], **more: Any) -> dict[str, Any]:
    """What answers depend on: the model's file, what computes, the adapters' numbers, and `more`, JSON-able."""
    path = Path(model.gguf.path)
    facts = path.stat()
    return {
        "model": [str(path.resolve()), facts.st_size, facts.st_mtime_ns],
        "engine": model.engine.identity(),
        **more,
        "adapters": {name: None if adapter is None else _digest(adapter) for name, adapter in adapters.items()},
    }


def _digest(adapter: Adapter) -> str:
    found = hashlib.sha256()
    for name in sorted(adapter.tensors):
        found.update(name.encode())
        for values in adapter.tensors[name]:
            found.update(np.ascontiguousarray(values).tobytes())
    found.update(repr((adapter.scale, adapter.chat_template)).encode())
    return found.hexdigest()


class Kept:
    """Batches by (series, number). report: the file that the report goes to, or None: then nothing is kept. tell: says
    a sentence to whoever interrupted."""

    def __init__(self, report: Path | None = None, tell: Callable[[str], None] = lambda text: None):
        self.tell = tell
        self.report, self.path = report, None
        self.found: dict[tuple[str, int], list[Any]] = {}
        self._file, self._answers = None, 0

    def begin(self, what: Mapping[str, Any]) -> None:
        """Take up the file of the same evaluation, or begin a new one; others have files of their own."""
        if self.report is None:
            return
        digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
        head = json.dumps({"answers_of": digest})
        self.path = self.report.with_name(f"{self.report.name}.{digest[:8]}{SUFFIX}")
        lines = "".join(line + "\n" for line in [head, *self._read(head)])
        try:
            with atomic_write(self.path) as file:  # again, as far as it was right
                file.write(lines.encode())
            self._file = self.path.open("a", encoding="utf-8")
        except OSError as error:
            self._give_up(error)

    def _read(self, head: str) -> list[str]:
        right: list[str] = []
        try:
            lines = self.path.read_text("utf-8").removesuffix("\n").split("\n")
        except (OSError, UnicodeDecodeError):
            return right
        if lines[:1] != [head]:
            return right
        for line in lines[1:]:
            try:
                row = json.loads(line)
                self.found[str(row["series"]), int(row["number"])] = list(row["rows"])
            except (ValueError, KeyError, TypeError):
                break
            right.append(line)
        return right

    def get(self, series: str, number: int, count: int) -> list[Any] | None:
        """The rows of a batch of so many, if it was answered."""
        rows = self.found.get((series, number))
        return rows if rows is not None and len(rows) == count else None

    def put(self, series: str, number: int, rows: Sequence[Any]) -> None:
        if self._file is None:
            return
        try:
            self._file.write(json.dumps({"series": series, "number": number, "rows": list(rows)}) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())
            self._answers += len(rows)
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        """No place to keep answers is no reason to stop answering."""
        self.tell(
            f"answers cannot be saved to {self.path} ({error.strerror}): if this is interrupted, further answers "
            "are lost"
        )
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None

    def __enter__(self) -> Kept:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """At the end, when the report is written, the file goes, and so does one without answers; after an interruption
        say where they are."""
        if self._file is not None:
            self._file.close()
        if self.path is None or not self.path.exists():
            return
        if kind is not None and (self._answers or self.found):
            self.tell(f"answers so far are saved in {self.path}: the same command continues from there")
        else:
            self.path.unlink(missing_ok=True)
