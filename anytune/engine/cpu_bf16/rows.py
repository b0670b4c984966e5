"""Rows of bf16: the left operand of a product, padded for the low-rank columns."""

from __future__ import annotations

import numpy as np

from anytune.engine.numpy.layout import address

from .gemm import SPARE, row_bytes

LINE = 16  # words of a cache line


class Rows:
    """[T, columns] of bf16 in a pooled buffer. group: whose low-rank products are behind the
    columns (None: nobody's)."""

    __slots__ = ("shape", "address", "stride", "group", "_buffer")

    def __init__(self, shape: tuple[int, int], address: int, stride: int, buffer: np.ndarray, group=None):
        self.shape, self.address, self.stride, self.group, self._buffer = shape, address, stride, group, buffer

    def part(self, first: int, columns: int) -> Rows:
        """Some of the columns; its end may be padding of the whole."""
        return Rows((self.shape[0], columns), self.address + 2 * first, self.stride, self._buffer)

    def follows(self, other: Rows) -> bool:
        """Whether these columns are right behind the other's."""
        return self._buffer is other._buffer and self.address == other.address + 2 * other.shape[1]

    def row_padding(self) -> int:
        """Columns to the end of a row."""
        at = (self.address - address(self._buffer)) % self.stride
        return (self.stride - at) // 2

    def float32(self, low: int = 0, high: int | None = None) -> np.ndarray:
        """A float32 copy of rows low…high."""
        high = self.shape[0] if high is None else high
        (tokens, columns), wide, at = self.shape, self.stride // 2, (self.address - address(self._buffer)) // 2
        rows = self._buffer.view(np.uint16)[: tokens * wide].reshape(tokens, wide)[low:high, at : at + columns]
        return (rows.astype(np.uint32) << 16).view(np.float32)


def make(e, tokens: int, columns: int, group=None) -> Rows:
    """Rows from the engine's pool, content undefined."""
    stride = row_bytes(columns)
    slots = max(1, -(-tokens // max(int(e._starts[-1]), 1)))  # of a token, as in numpy/layout.py
    buffer = e.flat((max(tokens, e.capacity * slots) + SPARE) * stride // 4)
    return Rows((tokens, columns), address(buffer), stride, buffer, group)


def aligned(e, number: int, name: str, words: int) -> int:
    """The address of a worker's own scratch of 4-byte words, on a cache line."""
    place = e.scratch_at[number].get(name)
    if place is None or place[0] < words:
        buffer = e.scratch(number, name, words + LINE)
        place = e.scratch_at[number][name] = (words, address(buffer) + 63 & -64)
    return place[1]
