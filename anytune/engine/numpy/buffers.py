"""The memory that operations work in: pooled results, each worker's scratch, and bytes of streamed blocks."""

from __future__ import annotations

import numpy as np

from .pool import Pool
from .workers import Workers


class Buffers:
    """Mixed into the engine. row_padding: spare columns behind every activation, where low-rank products ride (see
    linear.py); capacity: tokens that every [T, n] array can hold, so that its buffer fits all streams (0: no more than
    it has)."""

    workers: Workers
    empty = staticmethod(np.empty)

    def __init__(self, threads: int):
        self.workers = Workers(threads)
        self.pool, self.row_padding, self.capacity = Pool(), 0, 0
        self._scratch: list[dict[str, np.ndarray]] = [{} for _ in range(self.workers.count)]
        self._raw: dict[int, np.ndarray] = {}

    def use_threads(self, count: int) -> None:
        """Change the number of workers between steps; results stay the same."""
        self.workers.close()
        self.workers = Workers(count)
        self._scratch = [{} for _ in range(self.workers.count)]

    def flat(self, floats: int) -> np.ndarray:
        """A flat float32 array from the pool, content undefined."""
        return self.pool.take(floats)[:]

    def array(self, rows: int, columns: int, row_padding: int | None = None, slots: int = 1) -> np.ndarray:
        """A [rows, columns] float32 array from the pool, content undefined, `row_padding` columns behind; slots: rows
        of a token."""
        stride = columns + (self.row_padding if row_padding is None else row_padding)
        floats = max(rows, self.capacity * slots) * stride
        return self.pool.take(floats)[: rows * stride].reshape(rows, stride)[:, :columns]

    def scratch(self, number: int, name: str, floats: int) -> np.ndarray:
        """A worker's own flat buffer, the same memory at each call with the same name."""
        held = self._scratch[number].get(name)
        if held is None or held.size < floats:
            held = self._scratch[number][name] = None  # what was there goes before more comes
            held = self._scratch[number][name] = np.empty(floats, np.float32)
        return held[:floats]

    def raw(self, number: int, size: int) -> np.ndarray:
        """Bytes for streamed blocks: a worker's own, or with number -1 the one that all share."""
        held = self._raw.get(number)
        if held is None or held.size < size:
            held = self._raw[number] = None
            held = self._raw[number] = np.empty(size, np.uint8)
        return held[:size]

    def release(self) -> None:
        """Give all buffers back to the system (between training and what follows it)."""
        self.pool.clear()
        self._scratch = [{} for _ in range(self.workers.count)]
        self._raw = {}
