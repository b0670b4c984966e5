"""A mix judged by the whole model: written to a file, opened, and its distributions compared with the original's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from anytune.gguf import GGUF
from anytune.likelihood.divergence import Reference
from anytune.quantization.imatrix import Importance
from anytune.quantization.tensor_types import TensorTypes
from anytune.quantization.rewrite import carry_out

if TYPE_CHECKING:
    from anytune.model import Model


class Whole:
    """model: the original; pieces: windows of one length; folder: where mixes are written for as long as they are
    measured."""

    def __init__(
        self,
        model: Model,
        pieces: Sequence[Sequence[int]],
        importance: Importance | None,
        folder: Path,
        threads: int | None,
    ):
        self.model, self.importance, self.folder, self.threads = model, importance, folder, threads
        self.reference = Reference(model, pieces)

    def kl(self, formats: Mapping[str, str]) -> np.ndarray:
        """KL in nats at every token of the windows, with every tensor in the type that `formats` says. UserError if a
        tensor cannot become it, or the disk is full."""
        path = self.folder / "mix.gguf"
        try:
            carry_out(self.model.gguf, path, TensorTypes(None, formats), {}, {}, self.importance, self.threads, None)
            return self.of(path)
        finally:
            path.unlink(missing_ok=True)

    def of(self, path: Path, reference: Reference | None = None) -> np.ndarray:
        """The same of a file that is there."""
        from anytune.model import Model

        with GGUF.open(path) as file:
            return (reference or self.reference).kl(Model(file, self.model.engine, self.model.memory))
