"""A model with trained tensors in place of its file's, to be written as a GGUF of any type."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from anytune.quantization.rewrite import rewrite
from anytune.text.served import template_changes


class TrainedModel:
    """values: {tensor: float32 [rows, weights of a row]} in place of those of `gguf`; kind: a file type, None: each
    tensor keeps its own."""

    def __init__(self, gguf, values: dict[str, np.ndarray], kind: str | None):
        self.gguf, self.values, self.kind = gguf, values, kind
        self.chat_template: str | None = None  # to be written in place of the file's

    def save(
        self, path: str | os.PathLike, threads: int | None = None, progress: Callable[[int, int], None] | None = None
    ) -> dict[str, Any]:
        """Write the GGUF, whole or not at all, with all metadata and the tokenizer. Raises UserError. Returns facts."""
        changes: dict[str, Any] = {
            "general.name": f"{self.gguf.metadata.get('general.name') or self.gguf.path.stem} tuned"
        }
        changes |= template_changes(self.gguf.metadata, self.chat_template)
        return rewrite(
            self.gguf,
            Path(path),
            self.kind,
            metadata=changes,
            threads=threads,
            progress=progress,
            values={name: (lambda lo, hi, rows=rows: rows[lo:hi]) for name, rows in self.values.items()},
        )

    def nbytes(self) -> int:
        """Bytes of the tensors in the file."""
        return rewrite(self.gguf, None, self.kind)["bytes_after"]
