"""A GGUF file: its header is parsed at once (header.py), its tensors stay in the file until asked for."""

from __future__ import annotations

import hashlib
import mmap
import os
import threading
from pathlib import Path
from typing import Self

import numpy as np

from anytune.errors import UserError
from anytune.gguf.blocks import CHUNK, dequantize
from anytune.gguf.header import Parser, TensorInfo


class GGUF:
    """An open file: `metadata`, `kinds` (the type of each value), `tensors`, and their blocks."""

    def __init__(self, path: Path, data: mmap.mmap | bytes, handle: int | None = None) -> None:
        parser = Parser(path, data)
        self.path = path
        self.size = len(data)
        self.version, n_tensors, n_values = parser.header()
        self.metadata, self.kinds = parser.metadata(n_values)
        self.alignment = parser.alignment(self.metadata)
        self.tensors = parser.tensors(n_tensors, self.alignment)
        self._data: mmap.mmap | bytes | None = data
        self._handle = handle
        self._lock = threading.Lock()
        self._sha256: str | None = None

    @classmethod
    def open(cls, path: str | os.PathLike) -> GGUF:
        """Map the file and parse its header. UserError if it cannot be read or breaks the format."""
        path = Path(path)
        if path.exists() and not path.is_file():  # a named pipe would be waited for
            raise UserError(f"{path} is not a file; give the path of a .gguf file.")
        try:
            handle = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        except OSError as error:
            raise UserError(f"{path} cannot be opened: {error.strerror}; check the path.") from None
        data = None
        try:
            if os.fstat(handle).st_size == 0:
                raise UserError(f"{path} is empty: fetch or create it again.")
            try:
                data = mmap.mmap(handle, 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError) as error:
                raise UserError(f"{path} is not a readable GGUF file: {error}.") from None
            return cls(path, data, handle)
        except BaseException:
            if data is not None:
                data.close()
            os.close(handle)
            raise

    @classmethod
    def from_bytes(cls, data: bytes) -> GGUF:
        """Parse a file held in memory (tests and fuzzing)."""
        return cls(Path("<memory>"), data)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the file back. Arrays from blocks() stay valid: they hold the map until they are gone."""
        data, self._data = self._data, None
        if isinstance(data, mmap.mmap):
            try:
                data.close()
            except BufferError:
                pass  # a view is still in use
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    @property
    def n_parameters(self) -> int:
        """Numbers in all tensors together."""
        return sum(info.n_elements for info in self.tensors.values())

    def tensor(self, name: str) -> TensorInfo:
        """The tensor `name`; UserError if the file has none."""
        try:
            return self.tensors[name]
        except KeyError:
            raise UserError(f"{self.path} has no tensor {name}; it may be of another architecture.") from None

    def blocks(self, name: str) -> np.ndarray:
        """The raw blocks, uint8 [rows, row_bytes]: a read-only view of the mapped file."""
        t = self.tensor(name)
        if self._data is None:
            raise ValueError(f"{self.path} is closed")
        return np.frombuffer(self._data, np.uint8, t.nbytes, t.offset).reshape(t.rows, t.row_bytes)

    def read_into(self, name: str, lo: int, hi: int, out: np.ndarray) -> None:
        """Read rows lo..hi into `out`, uint8 [(hi - lo) * row_bytes], which the caller owns.

        Unlike a page of blocks(), what is read here does not stay in this process's memory. Threads may call
        it at once. Raises UserError if the file has become shorter.
        """
        t = self.tensor(name)
        want = (hi - lo) * t.row_bytes
        if not 0 <= lo <= hi <= t.rows or out.dtype != np.uint8 or out.nbytes != want:
            raise ValueError(f"{name}: rows {lo}..{hi} of {t.rows} do not fit {out.nbytes} bytes")
        target, at = memoryview(out).cast("B"), t.offset + lo * t.row_bytes
        done = 0
        while done < want:
            got = self._read(target[done:], at + done)
            if got == 0:
                raise UserError(f"{self.path} was truncated while it was read; fetch it again.")
            done += got

    def _read(self, target: memoryview, at: int) -> int:
        if self._handle is None:
            if self._data is None:
                raise ValueError(f"{self.path} is closed")
            target[:] = memoryview(self._data)[at : at + len(target)]
            return len(target)
        if hasattr(os, "preadv"):
            return os.preadv(self._handle, [target[: 1 << 30]], at)  # the kernel takes at most 2 GiB a call
        with self._lock:  # Windows has no preadv: seek and read as one
            os.lseek(self._handle, at, os.SEEK_SET)
            piece = os.read(self._handle, min(len(target), 1 << 24))
        target[: len(piece)] = piece
        return len(piece)

    def float32(self, name: str) -> np.ndarray:
        """The tensor dequantized: float32 of its shape, in memory of its own."""
        t = self.tensor(name)
        out = np.empty((t.rows, t.shape[-1]), np.float32)
        step = max(1, CHUNK // t.shape[-1])
        buffer = np.empty(step * t.row_bytes, np.uint8)
        for lo in range(0, t.rows, step):
            hi = min(lo + step, t.rows)
            part = buffer[: (hi - lo) * t.row_bytes]
            self.read_into(name, lo, hi, part)
            out[lo:hi] = dequantize(part.reshape(hi - lo, -1), t.type)
        return out.reshape(t.shape)

    def sha256(self) -> str:
        """The whole file's SHA-256 in hexadecimal, computed once."""
        if self._sha256 is None:
            if self._handle is None:
                self._sha256 = hashlib.sha256(self._data or b"").hexdigest()
            else:
                with self.path.open("rb", buffering=0) as file:
                    self._sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return self._sha256
