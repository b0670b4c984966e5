"""The differences that a type makes to a tensor's rows, a portion of rows at a time, every type from one reading."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from anytune.gguf import GGUF, dequantize
from anytune.gguf.encode import encode
from anytune.quantization.imatrix import Importance
from anytune.quantization.rewrite import PIECE, rows_of

Measure = Callable[[np.ndarray], Any]


class Rounding:
    """types: tensor -> the types to try; pool: the threads that work."""

    def __init__(
        self, file: GGUF, types: Mapping[str, Sequence[str]], importance: Importance | None, pool: ThreadPoolExecutor
    ):
        self.file, self.types, self.pool, self._importance = file, types, pool, importance

    def difference(self, name: str, exact: np.ndarray, kind: str, matrix: int = 0) -> np.ndarray:
        """What `kind` adds to rows of the tensor, or of one of its matrices: float32, of the shape of `exact`.
        ValueError: it cannot hold them."""
        columns = None
        if self._importance is not None:
            columns = self._importance.of(name, self.file.tensors[name].shape)
        blocks = encode(exact, kind, None if columns is None else np.ascontiguousarray(columns[matrix]))
        found = dequantize(blocks, kind)
        found -= exact
        return found

    def sums(self, name: str, prepare: Callable[[int, np.ndarray], Measure]) -> dict[str, Any]:
        """Type -> the sum of prepare(lo, rows from lo on)(their difference) over the rows of all matrices; infinity for
        a type that cannot hold them. Several threads call `prepare` at once."""
        info = self.file.tensors[name]
        step, each = max(1, PIECE // info.shape[-1]), info.shape[-2]

        def piece(lo: int) -> list[Any]:
            end = (lo // each + 1) * each
            exact = rows_of(self.file, name, lo, min(lo + step, end))
            measure = prepare(lo, exact)
            return [self._one(name, exact, kind, measure, lo // each) for kind in self.types[name]]

        starts = [first + lo for first in range(0, info.rows, each) for lo in range(0, each, step)]
        total: list[Any] = [0.0] * len(self.types[name])
        for part in self.pool.map(piece, starts):
            total = [before + more for before, more in zip(total, part, strict=True)]
        return dict(zip(self.types[name], total, strict=True))

    def _one(self, name: str, exact: np.ndarray, kind: str, measure: Measure, matrix: int) -> Any:
        try:
            difference = self.difference(name, exact, kind, matrix)
        except ValueError:
            return math.inf
        return measure(difference)
