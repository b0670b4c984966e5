"""Arrays of the WebGPU engine: views into buffers, and the pool of temporary ones.

Rows of activations begin at whole 256-byte lines, so that any run of rows or whole-line columns can be a binding.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .device import ALIGN, WORKGROUPS, Buffer, Device

LINE = ALIGN // 4  # elements of a line
VEC4 = 16  # bytes; a buffer has as many (SLACK) behind it


def lines(columns: int) -> int:
    """Columns rounded up to whole lines."""
    return -(-columns // LINE) * LINE


@dataclass(frozen=True)
class Bound:
    """A range of a buffer as a kernel sees it; the first element wanted is `shift` elements behind its start."""

    buffer: Buffer
    start: int  # bytes, a multiple of ALIGN
    size: int  # bytes
    shift: int = 0


def bound(buffer: Buffer, first: int, last: int, slack: int = 0) -> Bound:
    """Bytes first…last of a buffer (and `slack` behind them), from the line that they begin in, up to whole vec4s: a
    kernel that reads four at a time gets zeros for a last one that the binding cuts, and does not write it."""
    start = first // ALIGN * ALIGN
    return Bound(buffer, start, -(-(last + slack - start) // VEC4) * VEC4, (first - start) // 4)


class Array:
    """4-byte elements: [rows, columns] with `stride` elements from row to row, one row that is a vector, or a
    contiguous array of more dimensions, whose rows are along the last."""

    __slots__ = ("buffer", "at", "shape", "stride")

    def __init__(self, buffer: Buffer, at: int, shape: tuple[int, ...], stride: int):
        self.buffer, self.at, self.shape, self.stride = buffer, at, shape, stride

    @property
    def rows(self) -> int:
        return math.prod(self.shape[:-1])

    @property
    def columns(self) -> int:
        return self.shape[-1]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def part(self, low: int, high: int) -> Array:
        """Columns low…high of all rows; low begins a line."""
        return Array(self.buffer, self.at + low, (self.rows, high - low), self.stride)

    def __getitem__(self, places: slice) -> Array:
        """Elements of a vector, or rows."""
        low, high, step = places.indices(self.shape[0])
        if step != 1:
            raise IndexError("arrays on the device have no steps")
        if len(self.shape) == 1:
            return Array(self.buffer, self.at + low, (high - low,), high - low)
        return Array(self.buffer, self.at + low * self.stride, (high - low, self.columns), self.stride)

    def reshape(self, *shape) -> Array:
        """A vector as contiguous rows; -1: as many as there are."""
        shape = shape[0] if len(shape) == 1 and isinstance(shape[0], tuple) else shape
        shape = tuple(-self.size // math.prod(shape) if n == -1 else n for n in shape)
        if len(self.shape) != 1 or math.prod(shape) != self.shape[0]:
            raise ValueError(f"{self.shape} cannot become {shape}")
        return Array(self.buffer, self.at, shape, shape[-1])

    def bind(self, low: int = 0, high: int | None = None) -> Bound:
        """Rows low…high (of a vector: all) as a binding."""
        high = self.rows if high is None else high
        first = self.at + low * self.stride
        last = self.at + (high - 1) * self.stride + self.columns
        return bound(self.buffer, 4 * first, 4 * last)

    def span(self, low: int, high: int) -> Bound:
        """Elements low…high of a vector as a binding."""
        return bound(self.buffer, 4 * (self.at + low), 4 * (self.at + high))


class Sum(Array):
    """x + y over y, not added yet. The norm that follows adds in the same pass; a view or a binding made before that
    adds first."""

    __slots__ = ("pending", "settle")

    def __init__(self, x: Array, y: Array, settle: Callable[[Sum], None]):
        super().__init__(y.buffer, y.at, y.shape, y.stride)
        self.pending: Array | None = x
        self.settle = settle

    def take(self) -> Array | None:
        """What is still to be added; from now on that is the caller's task."""
        x, self.pending = self.pending, None
        return x

    def now(self) -> None:
        if self.pending is not None:
            self.settle(self)

    def part(self, low: int, high: int) -> Array:
        self.now()
        return super().part(low, high)

    def __getitem__(self, places: slice) -> Array:
        self.now()
        return super().__getitem__(places)

    def bind(self, low: int = 0, high: int | None = None) -> Bound:
        self.now()
        return super().bind(low, high)


def cuts(count: int, most: int, step: int = 1) -> Iterator[tuple[int, int]]:
    """0…count in pieces of at most `most`, each but the last a multiple of `step`."""
    most = max(step, most // step * step)
    for low in range(0, count, most):
        yield low, min(low + most, count)


def row_cuts(limit: int, *arrays: Array | None) -> Iterator[tuple[int, int]]:
    """Runs of rows whose bindings are within `limit` bytes in each of the arrays (None: not there), and that a
    dispatch can give a workgroup each."""
    here = [a for a in arrays if a is not None]
    most = min([WORKGROUPS, *((limit - ALIGN) // (4 * a.stride) for a in here if a.rows > 1)])
    yield from cuts(here[0].rows, most)


class Pool:
    """Buffers of temporary arrays, by size: returned ones are reused, and none is freed before clear().

    Lent buffers are referenced here too: else the garbage collector could find a loan and its buffer in one cycle (an
    exception's frames), and a buffer that is already finalized would return as free.
    """

    def __init__(self, device: Device):
        self.device, self.bytes = device, 0
        self._free: dict[int, list[Buffer]] = defaultdict(list)
        self._lent: dict[int, Buffer] = {}
        self._turn = 0

    def take(self, floats: int) -> Loan:
        size = 4 * floats
        free = self._free[size]
        if free:
            buffer = free.pop()
        else:
            buffer = self.device.buffer(size, owned=False)
            self.bytes += size
        self._lent[buffer.serial] = buffer
        return Loan(self, buffer, self._turn)

    def back(self, serial: int, turn: int) -> None:
        buffer = self._lent.pop(serial)
        if turn == self._turn:
            self._free[buffer.size].append(buffer)

    def clear(self) -> None:
        """Free what is not lent, and the rest when it returns."""
        self._free.clear()
        self._turn += 1
        self.bytes = 0


class Loan:
    """A pooled buffer in use; it returns when the last reference goes."""

    __slots__ = ("pool", "buffer", "turn")

    def __init__(self, pool: Pool, buffer: Buffer, turn: int):
        self.pool, self.buffer, self.turn = pool, buffer, turn

    @property
    def raw(self):
        return self.buffer.raw

    @property
    def size(self) -> int:
        return self.buffer.size

    @property
    def serial(self) -> int:
        return self.buffer.serial

    @property
    def owned(self) -> bool:
        return False

    def __del__(self) -> None:
        self.pool.back(self.buffer.serial, self.turn)
