"""Frozen matrices in their GGUF blocks, dequantized a tile at a time where they are used.

A tile lives in a worker's own scratch, small enough for its cache, so dequantizing costs less than reading
float32 weights from memory would. A weight is held in one of three ways (`hold`):

- "blocks": the file's bytes in memory (the default: 0.6 bytes a weight for Q4_1, and full speed);
- "stream": nothing held, bytes are read from the file for each use (for models larger than the memory);
- "float32": dequantized once, four bytes a weight (for types whose dequantization is slow).
"""

from __future__ import annotations

import threading

import numpy as np

from anytune.gguf import GGUF, BlockType, dequantize


class Weight:
    """One matrix [out, in] of a GGUF. Not trained: it has no gradient (trained.py has those that do)."""

    first = 0  # row of its tensor in the file
    gradient = None
    empty = staticmethod(np.empty)

    def __init__(self, gguf: GGUF, name: str, hold: str = "blocks", kernels=None):
        info = gguf.tensors[name]
        self.name, self.type = name, info.type
        self.out_features, self.in_features = info.shape[-2:]
        self.row_bytes, self.block = info.row_bytes, info.type.block_size
        self.hold = hold
        self._gguf, self._lock = gguf, threading.Lock()
        self._kernels = kernels or {}
        self._kernel = self._kernels.get(info.type.name)
        self._blocks: np.ndarray | None = None
        self._float32: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return self.out_features, self.in_features

    @property
    def slow(self) -> bool:
        """Whether this type is dequantized without a compiled kernel."""
        return not hasattr(self._kernel, "signatures")

    @property
    def nbytes(self) -> int:
        """Bytes of the matrix in the file."""
        return self.out_features * self.row_bytes

    def load(self) -> None:
        """Bring into memory what `hold` says (at the first use, or ahead of it)."""
        with self._lock:
            if self.hold == "blocks" and self._blocks is None:
                blocks = self.empty(self.nbytes, np.uint8)
                self._blocks = self._read(0, self.out_features, blocks)
            elif self.hold == "float32" and self._float32 is None:
                dense = self.empty(self.shape, np.float32)
                blocks, self._blocks = self._blocks, None
                step = max(1, (1 << 20) // self.row_bytes)
                raw = self.empty(step * self.row_bytes, np.uint8) if blocks is None else None
                for low in range(0, self.out_features, step):
                    high = min(low + step, self.out_features)
                    piece = (
                        self._read(low, high, raw)
                        if blocks is None
                        else blocks[low * self.row_bytes : high * self.row_bytes]
                    )
                    self._convert(piece, 0, self.block, self.row_bytes, dense[low:high], self.in_features)
                self._float32 = dense

    def replace(self, block: BlockType, blocks: np.ndarray) -> None:
        """Other blocks in place of the file's from the next use on, held in memory: uint8 [out * bytes of a row]."""
        with self._lock:
            self.type, self.row_bytes, self.block = block, block.row_bytes(self.in_features), block.block_size
            self._kernel, self._blocks, self._float32, self.hold = self._kernels.get(block.name), blocks, None, "blocks"

    def change_hold(self, hold: str) -> None:
        """Hold the weight in another way from the next use on."""
        if hold != self.hold:
            self.hold = hold
            if hold != "float32":
                self._float32 = None
            if hold == "stream":
                self._blocks = None

    def forget(self) -> None:
        """Give up what is held; the next use reads it from the file."""
        self._blocks = self._float32 = None

    def dense(self) -> np.ndarray | None:
        """The float32 matrix when it is held so, else None."""
        if self.hold != "float32":
            return None
        if self._float32 is None:
            self.load()
        return self._float32

    def needs_raw(self) -> bool:
        """Whether columns() must be given the file's bytes (a streamed weight)."""
        return self.hold == "stream"

    def rows(self, low: int, high: int, out: np.ndarray, raw) -> None:
        """Dequantize rows low…high into out[:, :in]. raw(bytes) gives scratch for streamed bytes."""
        if self.hold == "float32":
            out[:, : self.in_features] = self.dense()[low:high]
            return
        if self.hold == "stream":
            source = self._read(low, high, raw((high - low) * self.row_bytes))
        else:
            source = self._held()[low * self.row_bytes : high * self.row_bytes]
        self._convert(source, 0, self.block, self.row_bytes, out, self.in_features)

    def columns(self, low: int, high: int, out: np.ndarray, raw: np.ndarray | None) -> None:
        """Dequantize columns low…high (multiples of the block size, or the end) of all rows into `out`.

        raw: the matrix's bytes (see read_rows) when needs_raw() says so.
        """
        if self.hold == "float32":
            out[:, : high - low] = self.dense()[:, low:high]
            return
        source = raw if self.hold == "stream" else self._held()
        start = low // self.block * self.type.type_size
        self._convert(source, start, self.block, self.row_bytes, out, high - low)

    def read_rows(self, low: int, high: int, raw: np.ndarray) -> None:
        """Read the file's bytes of rows low…high into raw, a flat buffer of the whole matrix."""
        self._read(low, high, raw[low * self.row_bytes : high * self.row_bytes])

    def gather(self, rows: np.ndarray, out: np.ndarray) -> None:
        """out[i] = the float32 row rows[i]."""
        dense = self.dense()
        if dense is not None:
            np.take(dense, rows, axis=0, out=out[:, : self.in_features], mode="raise")
            return
        self._convert(self._picked(rows).reshape(-1), 0, self.block, self.row_bytes, out, self.in_features)

    def _picked(self, rows: np.ndarray) -> np.ndarray:
        """The blocks of some rows, uint8 [n, bytes of a row]."""
        if self.hold == "blocks":
            return self._held().reshape(self.out_features, self.row_bytes)[rows]
        # read row by row: mapped pages would stay in memory, and bring their neighbours
        picked = np.empty((len(rows), self.row_bytes), np.uint8)
        for place, row in enumerate(rows.tolist()):
            self._gguf.read_into(self.name, row, row + 1, picked[place])
        return picked

    def _held(self) -> np.ndarray:
        if self._blocks is None:
            self.load()
        return self._blocks

    def _read(self, low: int, high: int, raw: np.ndarray) -> np.ndarray:
        out = raw[: (high - low) * self.row_bytes]
        self._gguf.read_into(self.name, self.first + low, self.first + high, out)
        return out

    def _convert(self, source: np.ndarray, start: int, block: int, stride: int, out: np.ndarray, columns: int) -> None:
        """Blocks at source[start + row*stride …] to out[:, :columns] (inner stride one element)."""
        rows, blocks = out.shape[0], columns // block
        if self._kernel is not None:
            flat = (
                out.reshape(-1)  # a view, and cheaper than the other
                if not rows or out.flags.c_contiguous
                else np.lib.stride_tricks.as_strided(out, ((rows - 1) * (out.strides[0] // 4) + columns,), (4,))
            )
            self._kernel(source, stride, start, flat, out.strides[0] // 4, 0, rows, blocks)
            return
        width = blocks * self.type.type_size
        view = np.lib.stride_tricks.as_strided(source[start:], (rows, width), (stride, 1))
        out[:, :columns] = dequantize(np.ascontiguousarray(view), self.type)


class Expert(Weight):
    """One expert's matrix within a tensor [experts, out, in]."""

    def __init__(self, number: int, *of):
        super().__init__(*of)
        self.first = number * self.out_features


class ExpertWeights:
    """A tensor [experts, out, in]: an expert's matrix comes into memory when it is first used."""

    gradient = None

    def __init__(self, gguf: GGUF, name: str, hold: str = "blocks", kernels=None):
        info = gguf.tensors[name]
        self._of, self._made = (gguf, name), {}
        self._kernels, self.name, self.type, self.hold, self.nbytes = kernels or {}, name, info.type, hold, info.nbytes
        self.out_features, self.in_features, self.expert_features = info.rows, info.shape[-1], info.shape[-2]
        self.block = info.type.block_size

    @property
    def slow(self) -> bool:
        """As Weight's."""
        return not hasattr(self._kernels.get(self.type.name), "signatures")

    def expert(self, number: int) -> Expert:
        if number not in self._made:
            self._made[number] = Expert(number, *self._of, self.hold, self._kernels)
        return self._made[number]

    def change_hold(self, hold: str) -> None:
        self.hold = hold
        for expert in self._made.values():
            expert.change_hold(hold)

    def forget(self) -> None:
        for expert in self._made.values():
            expert.forget()
