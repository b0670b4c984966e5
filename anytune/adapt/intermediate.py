"""What a run makes on its way, kept on request: sums as .npz, adapters as GGUF and as safetensors (peft folders)."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from anytune.adapt.fit import Recipe
from anytune.adapt.recording import Recorder, about
from anytune.adapter.adapter import Adapter
from anytune.files import atomic_write

if TYPE_CHECKING:
    from anytune.model import Model

SUMS = "statistics.npz"


class Intermediate:
    """The folder for it; None: nothing is kept, and every method does nothing.

    record: what fit() calls with each group's equations, or None.
    """

    def __init__(self, folder: str | os.PathLike | None, model: Model, resume: bool = False):
        self.folder, self.model = None if folder is None else Path(folder), model
        self.recorder = None if self.folder is None else Recorder(self.folder / SUMS, resume)

    @property
    def record(self) -> Callable[..., None] | None:
        return None if self.recorder is None else self.recorder.add

    def __enter__(self) -> Intermediate:
        if self.folder is not None and self.recorder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.recorder.__enter__()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.recorder is not None:
            self.recorder.__exit__(kind, error, trace)

    def sums(self, recipe: Recipe, template: str | None) -> None:
        """Make statistics.npz of what was recorded: `anytune adapt solve` takes it."""
        if self.recorder is not None:
            self.recorder.pack(self.model.config.products(), about(self.model, recipe, template))

    def adapter(self, name: str, adapter: Adapter) -> None:
        """Write an adapter as name.gguf, and as the peft folder name."""
        if self.folder is not None:
            adapter.save(self.folder / f"{name}.gguf", self.model.gguf)
            adapter.save_peft(self.folder / name, self.model.gguf)

    def arrays(self, name: str, values: Mapping[str, Any]) -> None:
        """Write arrays as name.npz."""
        if self.folder is not None:
            with atomic_write(self.folder / f"{name}.npz") as file:
                np.savez(file, **{key: np.asarray(value) for key, value in values.items()})
