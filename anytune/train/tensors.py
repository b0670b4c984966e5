"""Safetensors, streamed: written array by array and hashed on the way, read strictly as memory maps.

The safetensors package wants every tensor as bytes at once, which would double the memory of a save.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from anytune.errors import UserError

DTYPES = {"F32": "<f4", "F64": "<f8", "F16": "<f2", "I64": "<i8", "I32": "<i4", "U8": "|u1", "BOOL": "|b1"}
NAMES = {np.dtype(code): name for name, code in DTYPES.items()}
MAX_HEADER = 64 << 20  # bytes; a header lists names and shapes, never data
CHUNK = 256 << 10  # bytes at a time: saving must fit beside a training that fills its budget


class Broken(UserError):
    """A file that is not what it says it is: torn, altered or hostile."""


def write_file(path: Path, parts) -> tuple[int, str]:
    """Write the byte-like parts to a new file and sync it. Returns (size, sha256 hex). Raises OSError."""
    digest, size = hashlib.sha256(), 0
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        for part in parts:
            view = memoryview(part).cast("B")
            for start in range(0, len(view), CHUNK):
                piece = view[start : start + CHUNK]
                digest.update(piece)
                size += len(piece)
                while len(piece):
                    piece = piece[os.write(handle, piece) :]
        os.fsync(handle)
    finally:
        os.close(handle)
    return size, digest.hexdigest()


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray]) -> tuple[int, str]:
    """Write a safetensors file (names sorted, so equal content gives equal bytes). As write_file()."""
    header, offset, names = {}, 0, sorted(tensors)
    for name in names:
        array = tensors[name]
        header[name] = {
            "dtype": NAMES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)

    def parts():
        yield len(text).to_bytes(8, "little")
        yield text
        for name in names:
            array = np.ascontiguousarray(tensors[name])
            if array.nbytes:
                yield array.reshape(-1).view(np.uint8)

    return write_file(path, parts())


class Tensors(Mapping):
    """Name -> read-only array, mapped from the file at each look-up, so that none stays in memory."""

    def __init__(self, path: Path, places: dict[str, tuple[int, np.dtype, tuple[int, ...]]]):
        self.path, self.places = path, places

    def __getitem__(self, name: str) -> np.ndarray:
        offset, dtype, shape = self.places[name]
        if not math.prod(shape):
            return np.zeros(shape, dtype)
        return np.memmap(self.path, dtype, "r", offset, shape).view(np.ndarray)

    def __iter__(self):
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


def read_tensors(path: Path) -> Tensors:
    """The tensors of a file. Everything is checked against the file's size before anything is mapped.

    Raises Broken if the file is not a whole safetensors file of a dtype in DTYPES.
    """

    def bad(problem: str) -> Broken:
        return Broken(f"{path}: {problem}; the file is damaged, use another checkpoint.")

    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, MAX_HEADER):
            raise bad("its header does not fit in it")
        try:
            header = json.loads(file.read(length))
        except (ValueError, RecursionError):
            raise bad("its header is not JSON") from None
    if not isinstance(header, dict):
        raise bad("its header is not a JSON object of tensors")
    header.pop("__metadata__", None)
    rows, end = [], 0
    for name, row in header.items():
        try:
            dtype, shape, (lo, hi) = np.dtype(DTYPES[row["dtype"]]), tuple(row["shape"]), row["data_offsets"]
            sound = all(type(n) is int and 0 <= n <= size for n in (*shape, lo, hi)) and len(shape) <= 8
        except (KeyError, TypeError, ValueError):
            sound = False
        if not sound or math.prod(shape) * dtype.itemsize != hi - lo:
            raise bad(f"its entry {name[:80]!r} is malformed")
        rows.append((lo, hi, name, dtype, shape))
    for lo, hi, name, _, _ in sorted(rows):
        if lo != end:
            raise bad(f"its tensor {name[:80]!r} overlaps or leaves a gap")
        end = hi
    if 8 + length + end != size:
        raise bad(f"it has {size} bytes, not the {8 + length + end} given in its header")
    return Tensors(path, {name: (8 + length + lo, dtype, shape) for lo, _, name, dtype, shape in rows})


def sha256(path: Path) -> str:
    """Hash of a file, in chunks."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
