"""Importance matrices: GGUF files as llama.cpp writes and reads them.

For the weight of each product the mean square of its input's columns: an error in a column costs in proportion.
A tensor <weight>.in_sum2 [matrices, columns] holds the sums of squares, <weight>.counts [matrices, 1] of how many
tokens; a mixture of experts has one matrix an expert.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from anytune.errors import UserError
from anytune.gguf import GGUF, write_gguf

SUMS, COUNTS = ".in_sum2", ".counts"
LEAST = 1e-5  # of the mean: what the calibration text never used must not be thrown away


@dataclass(frozen=True)
class Importance:
    """columns: tensor name -> float32 [matrices, columns], means of 1 over all. sources, chunks: what it came from."""

    columns: Mapping[str, np.ndarray]
    sources: tuple[str, ...] = ()
    chunks: int = 0
    path: str = ""

    def of(self, name: str, shape: tuple[int, ...]) -> np.ndarray | None:
        """float32 [matrices, columns] for the weight `name`, None if nothing was measured. UserError: another shape."""
        found = self.columns.get(name)
        if found is None:
            return None
        matrices = int(np.prod(shape[:-2])) if len(shape) > 2 else 1
        if found.shape[1] != shape[-1] or found.shape[0] not in (1, matrices):
            raise UserError(
                f"{self.path}: the importance of {name} is of shape {found.shape}, and the model's tensor is "
                f"{tuple(shape)}: it belongs to another model."
            )
        return np.broadcast_to(found, (matrices, shape[-1]))


def write_imatrix(
    path: str | os.PathLike,
    sums: Mapping[str, np.ndarray],
    counts: Mapping[str, int | np.ndarray],
    sources: Sequence[str],
    chunks: int,
    chunk_size: int,
) -> None:
    """sums: weight name -> [columns], or of experts [experts, columns], of squares over counts[name] tokens, or as many
    of each expert. UserError if it cannot be written."""
    metadata = {
        "general.type": "imatrix",
        "imatrix.datasets": list(sources),
        "imatrix.chunk_count": chunks,
        "imatrix.chunk_size": chunk_size,
    }
    tensors = []
    for name in sorted(sums):
        values = np.atleast_2d(np.asarray(sums[name], np.float32))
        count = np.asarray(counts[name], np.float32).reshape(-1, 1)
        tensors.append((name + SUMS, values.shape, "F32", values))
        tensors.append((name + COUNTS, count.shape, "F32", count))
    write_gguf(path, metadata, tensors, kinds={"imatrix.datasets": "string[]"})


def read_imatrix(path: str | os.PathLike) -> Importance:
    """UserError for a file that is damaged or no importance matrix."""
    with Path(path).open("rb") as file:
        if file.read(4) != b"GGUF":
            raise UserError(
                f"{path} is not an importance matrix in GGUF; write one with `anytune imatrix`, or convert "
                "an old .dat with `llama-imatrix --in-file OLD.dat -o NEW.gguf`."
            )
    with GGUF.open(path) as file:
        names = [name.removesuffix(SUMS) for name in file.tensors if name.endswith(SUMS)]
        if file.metadata.get("general.type") != "imatrix" or not names:
            raise UserError(f"{path} is a GGUF file, but not an importance matrix: create one with `anytune imatrix`.")
        columns = {name: _means(file, name) for name in names}
        sources, chunks = file.metadata.get("imatrix.datasets", ()), file.metadata.get("imatrix.chunk_count", 0)
    return Importance(columns, tuple(map(str, sources)), int(chunks), str(path))


def _means(file: GGUF, name: str) -> np.ndarray:
    sums, counts = file.float32(name + SUMS), file.float32(name + COUNTS)
    sums = sums.reshape(-1, sums.shape[-1])
    counts = counts.reshape(-1, 1)
    finite = np.isfinite(sums).all() and np.isfinite(counts).all()
    if len(counts) not in (1, len(sums)) or not finite or (sums < 0).any():
        raise UserError(f"{file.path}: the importance of {name} is damaged; create the file again.")
    return normalized(sums / np.maximum(counts, 1), counts > 0)


def normalized(means: np.ndarray, seen: np.ndarray | None = None) -> np.ndarray:
    """Mean squares [matrices, columns] as importances: float32, of mean 1; of a matrix that no token went through
    (seen [matrices, 1], False) all columns alike."""
    seen = np.ones((len(means), 1), bool) if seen is None else np.broadcast_to(seen, (len(means), 1))
    mean = means[seen[:, 0]].mean() if seen.any() else 0.0
    if not mean > 0:
        return np.ones(means.shape, np.float32)
    return np.maximum(np.where(seen, means / mean, 1.0), LEAST).astype(np.float32)
