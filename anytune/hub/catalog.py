"""Every model on this machine, with what it is."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

from anytune.hub import huggingface, lmstudio, ollama
from anytune.hub.cache import home
from anytune.hub.facts import Facts, Memory
from anytune.hub.pull import KNOWN
from anytune.hub.stored import Stored, gguf_files, joined, one_row_each


@dataclass(frozen=True)
class Row:
    """bytes: of all parts."""

    stored: Stored
    facts: Facts
    bytes: int

    def as_dict(self) -> dict:
        """JSON-able, with the file's path."""
        return {
            "name": self.stored.name,
            "store": self.stored.store,
            "path": str(self.stored.path),
            "parts": len(self.stored.paths),
            "also": list(self.stored.also),
            "bytes": self.bytes,
            "title": self.facts.title,
            "architecture": self.facts.architecture,
            "type": self.facts.type,
            "parameters": self.facts.parameters,
            "context": self.facts.context,
            "chat_template": self.facts.chat_template,
            "trainable": self.facts.reason is None,
            "reason": self.facts.reason,
        }


def own() -> Iterator[Stored]:
    """What `anytune pull` has fetched into its own cache."""
    names = {model.file: name for name, model in KNOWN.items()}
    for paths, whole in joined(gguf_files(home())):
        alone = names.get(paths[0].name) if paths[0].parent == home() else None
        yield Stored(alone or str(paths[0]), "anytune", paths, whole)


def models() -> list[Row]:
    """Models of all stores, one row a file. What is no model (projectors, importances, adapters) is left out."""
    memory, rows = Memory(), []
    found = chain(own(), ollama.models(), lmstudio.models(), huggingface.models(), huggingface.llama_cpp())
    for model in one_row_each(found):
        with contextlib.suppress(OSError):  # gone meanwhile
            facts = memory.facts(model)
            if facts.kind in ("model", ""):
                rows.append(Row(model, facts, sum(path.stat().st_size for path in model.paths)))
    memory.keep()
    return rows
