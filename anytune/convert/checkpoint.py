"""The weights of a Hugging Face folder: safetensors files, one or many, read a portion at a time."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from anytune.errors import UserError
from anytune.files import read_json
from anytune.gguf import dequantize

INDEX = "model.safetensors.index.json"
HEADER_LIMIT = 100 << 20  # bytes, as the safetensors library has it
SIZES = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8}


@dataclass(frozen=True)
class Weight:
    """One tensor: where its bytes begin in `file`, and what they are."""

    file: Path
    at: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return SIZES[self.dtype] * math.prod(self.shape)

    def rows(self, low: int, high: int) -> np.ndarray:
        """Rows low…high of the first axis: float32 [high - low, …]. Raises UserError if the file ends early."""
        row = self.nbytes // self.shape[0]
        with open(self.file, "rb") as file:
            file.seek(self.at + low * row)
            raw = file.read((high - low) * row)
        if len(raw) != (high - low) * row:
            raise UserError(f"{self.file} ends early: download it again.")
        shape = (high - low, *self.shape[1:])
        if self.dtype == "F32":
            return np.frombuffer(raw, "<f4").reshape(shape)
        return dequantize(np.frombuffer(raw, np.uint8), self.dtype).reshape(shape)

    def pieces(self, weights: int) -> Iterator[tuple[int, int]]:
        """(low, high) row ranges of about so many weights each."""
        step = max(1, weights // max(1, math.prod(self.shape[1:])))
        return ((low, min(low + step, self.shape[0])) for low in range(0, self.shape[0], step))


def read_weights(folder: Path) -> dict[str, Weight]:
    """Name -> Weight of every safetensors file that the folder's index names, or of model.safetensors.

    Nothing is read but headers. Raises UserError for files that are missing, damaged, or of another format.
    """
    if (folder / INDEX).is_file():
        named = read_json(folder / INDEX).get("weight_map")
        if not isinstance(named, dict) or not named or not all(isinstance(file, str) for file in named.values()):
            raise UserError(f"{folder / INDEX} has no weight_map: download it again.")
        files = sorted(set(named.values()))
        if outside := [file for file in files if Path(file).name != file]:
            raise UserError(f"{folder / INDEX} names a file outside of its folder ({outside[0][:80]!r}).")
    else:
        files = sorted(path.name for path in folder.glob("*.safetensors") if path.name != "adapter_model.safetensors")
        if not files:
            old = any(folder.glob("*.bin"))
            raise UserError(
                f"{folder} has no safetensors files"
                + (
                    ": its .bin files are pickles, which may run code and are not read; get the safetensors "
                    "version of the model."
                    if old
                    else ": name a folder with a whole model."
                )
            )
    found: dict[str, Weight] = {}
    for name in files:
        for tensor, weight in _header(folder / name).items():
            if tensor in found:
                raise UserError(f"{folder}: {tensor} is in two files.")
            found[tensor] = weight
    return found


def _header(path: Path) -> dict[str, Weight]:
    """The tensors of one file, each checked to lie in it."""
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > min(HEADER_LIMIT, size - 8):
                raise UserError(
                    f"{path} is not a safetensors file, or is damaged: its header would have {length} bytes."
                )
            table = json.loads(file.read(length))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: its header is not valid JSON ({error}).") from None
    if not isinstance(table, dict):
        raise UserError(f"{path} is damaged: its header is not a JSON object.")
    table.pop("__metadata__", None)
    return {name: _weight(path, name, entry, 8 + length, size) for name, entry in table.items()}


def _weight(path: Path, name: str, entry: Any, start: int, size: int) -> Weight:
    bad = UserError(f"{path} is damaged: the entry of {name[:80]!r} is invalid.")
    try:
        dtype, shape, (low, high) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    except (TypeError, KeyError, ValueError):
        raise bad from None
    if not isinstance(dtype, str) or dtype not in SIZES:
        raise UserError(
            f"{path}: {name[:80]} is stored as {str(dtype)[:20]}; only F32, F16, BF16 and F64 weights can "
            "be converted (dequantize the model first)."
        )
    if (
        not shape
        or not all(type(n) is int and 0 < n < 1 << 40 for n in shape)
        or not all(type(n) is int for n in (low, high))
    ):
        raise bad
    weight = Weight(path, start + low, dtype, shape)
    if low < 0 or high - low != weight.nbytes:
        raise bad
    if start + high > size:
        raise UserError(f"{path} ends early, at byte {size} of {start + high} or more: download it again.")
    return weight
