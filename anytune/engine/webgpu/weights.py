"""Frozen matrices on a WebGPU device, in the file's own bytes.

hold "blocks": on the device; "stream": read from the file and copied for each use, through two buffers in turns. A type
that the kernels do not know is dequantized on the host, once, and held as float32. Linears of a group whose weights are
of one type lie one behind the other, so that they are one product.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from anytune.errors import UserError
from anytune.gguf import dequantize
from anytune.gguf.blocks import BLOCKS

from .arrays import Array, bound, cuts
from .device import ALIGN, Buffer
from .kernels.blocks import TYPES

READ = 32 << 20  # bytes read from the file at a time
FAR = 0xFFFFFFFF  # where an absent pair begins
WHOLE = ("output.weight", "token_embd.weight")  # never streamed: one is used in pieces, the other by the row


@dataclass(frozen=True)
class Rows:
    """Rows low…high of a part, in a buffer from byte `at`."""

    low: int
    high: int
    buffer: Buffer
    at: int


class Weight:
    """One matrix [out, in] of a GGUF, or a tensor [experts, out, in] as one of experts * out rows."""

    slow, gradient = False, None

    def __init__(self, engine, gguf, name: str, hold: str):
        info = gguf.tensors[name]
        self.engine, self.name, self.type = engine, name, info.type
        self.out_features, self.expert_features, self.in_features = info.rows, info.shape[-2], info.shape[-1]
        self.known = info.type.name in TYPES
        self.block = info.type.name if self.known else "F32"  # what kernels read
        self.row_bytes = BLOCKS[self.block].row_bytes(self.in_features)
        self._gguf, self._rows = gguf, None
        self.hold = "blocks"
        self.change_hold(hold)

    @property
    def nbytes(self) -> int:
        """Bytes of the matrix on the device."""
        return self.out_features * self.row_bytes

    def change_hold(self, how: str) -> None:
        how = "stream" if how == "stream" and self.name not in WHOLE else "blocks"
        if how != self.hold:
            self.hold, self._rows = how, None

    @property
    def loaded(self) -> bool:
        return self._rows is not None

    def read(self, low: int, high: int) -> np.ndarray:
        """Rows low…high as the device has them: uint8, flat."""
        size = (high - low) * (self.row_bytes if self.known else self.type.row_bytes(self.in_features))
        raw = np.empty(size, np.uint8)
        self._gguf.read_into(self.name, low, high, raw)
        return raw if self.known else dequantize(raw.reshape(high - low, -1), self.type).reshape(-1).view(np.uint8)

    def write(self, buffer: Buffer, at: int, low: int = 0, high: int | None = None) -> None:
        """Rows low…high into a buffer from byte `at`, in the order of submits."""
        high = self.out_features if high is None else high
        rest, place = np.empty(0, np.uint8), at - at % 4
        if at % 4:  # a neighbour of an odd size ends within this word
            rest = self.engine.device.read(buffer.raw, place, 4)[: at % 4]
        for first, last in cuts(high - low, max(1, READ // self.row_bytes)):
            data = np.concatenate([rest, self.read(low + first, low + last)])
            whole = data.size if last == high - low else data.size // 4 * 4
            rest = data[whole:]
            self.engine.device.write(buffer.raw, place, np.pad(data[:whole], (0, -whole % 4)))
            place += whole

    def rows(self) -> list[Rows]:
        """Where the rows are. A matrix larger than any buffer may be lies in several."""
        if self.hold == "stream":
            return self.engine.streamer.bring(self)
        if self._rows is None:
            device, most = self.engine.device, self.engine.device.max_buffer // self.row_bytes
            step = self.expert_features if self.expert_features < self.out_features else 64  # experts stay whole
            self._rows = []
            self.engine.commands.flush()
            for low, high in cuts(self.out_features, max(1, most), step):
                buffer = device.buffer((high - low) * self.row_bytes)
                self.write(buffer, 0, low, high)
                self._rows.append(Rows(low, high, buffer, 0))
        return self._rows

    def adopt(self, buffer: Buffer, at: int) -> None:
        """The rows lie in this buffer from byte `at`."""
        self._rows = [Rows(0, self.out_features, buffer, at)]

    def pieces(self, step: int, most: int):
        """Runs of rows whose bytes fit a binding: (low, high, binding, bytes before the first row in it)."""
        yield from pieces(self.rows(), self.row_bytes, self.engine.device.max_binding, step, most)


def pieces(rows: list[Rows], row_bytes: int, limit: int, step: int, most: int):
    """As Weight.pieces(), for rows that may be of several weights. step: what runs are multiples of, if they can be."""
    room = rows_in(limit, row_bytes, sum(part.high - part.low for part in rows))
    while step > 4 and step > room:
        step //= 2
    for part in rows:
        for low, high in cuts(part.high - part.low, max(1, min(room, most)), min(step, room)):
            first = part.at + low * row_bytes
            made = bound(part.buffer, first, part.at + high * row_bytes, 4)
            yield part.low + low, part.low + high, made, first - made.start


def rows_in(limit: int, row_bytes: int, rows: int) -> int:
    """How many of the rows fit a binding."""
    room = (limit - ALIGN - 8) // row_bytes
    if room < 4 and rows > room:  # columns of activations are read by fours
        raise UserError(
            f"four rows of a weight take {4 * row_bytes} bytes, but the device binds at most {limit} at once: use "
            "another --device"
        )
    return room


class Streamer:
    """Two buffers that streamed weights are copied into in turns."""

    def __init__(self, engine):
        self.engine, self.buffers, self.turn = engine, [], 0

    def clear(self) -> None:
        self.buffers = []

    def bring(self, weight: Weight, bounds: Array | None = None) -> list[Rows]:
        """bounds int32 [experts + 1]: where each expert's slots begin; one without any is not read."""
        e, size = self.engine, weight.nbytes
        if len(self.buffers) < 2 or self.buffers[0].size < size:
            most = max(w.nbytes for w in [weight, *e.streamed()])
            self.buffers = [e.device.buffer(most) for _ in range(2)]
        self.turn ^= 1
        buffer = self.buffers[self.turn]
        if bounds is None:
            e.commands.upload(lambda: weight.write(buffer, 0))
        else:
            e.commands.upload(lambda: self._write_experts(weight, buffer, bounds))
        return [Rows(0, weight.out_features, buffer, 0)]

    def _write_experts(self, weight: Weight, buffer: Buffer, bounds: Array) -> None:
        begins = self.engine.device.read(bounds.buffer.raw, 4 * bounds.at, 4 * bounds.size).view(np.int32)
        each = weight.expert_features
        for expert in np.flatnonzero(np.diff(begins)).tolist():
            low, high = expert * each, (expert + 1) * each
            weight.write(buffer, low * weight.row_bytes, low, high)


@dataclass
class LoraPair:
    """The low-rank pair of one linear: a [r, in], b [out, r] and their gradients (or None), float32."""

    a: Array
    b: Array
    scale: float
    grad_a: Array | None = None
    grad_b: Array | None = None

    @property
    def rank(self) -> int:
        return self.a.shape[0]


def adjacent(one: Array | None, two: Array | None) -> bool:
    """Whether `two` begins where `one` ends."""
    if one is None or two is None:
        return one is two
    return one.buffer is two.buffer and one.at + one.size == two.at


def concatenated(arrays: list[Array | None]) -> Array | None:
    """Adjacent arrays as one, with the rows of all."""
    first = arrays[0]
    return (
        None
        if first is None
        else Array(first.buffer, first.at, (sum(a.shape[0] for a in arrays), first.shape[1]), first.stride)
    )


@dataclass
class Part:
    """Linears of a group that are one product: columns low…high of its output, pairs of `rank` columns each (0:
    none)."""

    weights: list[Weight]
    low: int
    high: int
    bounds: list[int]  # of its linears, counted from low
    pairs: list[LoraPair | None]

    @property
    def width(self) -> int:
        return self.high - self.low

    @property
    def block(self) -> str:
        return self.weights[0].block

    @property
    def row_bytes(self) -> int:
        return self.weights[0].row_bytes

    @property
    def pair(self) -> LoraPair | None:
        return self.pairs[0]

    @property
    def rank(self) -> int:
        return 0 if self.pair is None else self.pair.rank

    def stacked(self) -> LoraPair | None:
        """The pairs as one: a [all ranks, in], b [width, rank]."""
        if self.pair is None:
            return None
        return LoraPair(
            *(concatenated([getattr(s, name) for s in self.pairs]) for name in ("a", "b")),
            self.pair.scale,
            *(concatenated([getattr(s, name) for s in self.pairs]) for name in ("grad_a", "grad_b")),
        )

    def pieces(self, limit: int, most: int):
        rows: list[Rows] = []
        for weight, at in zip(self.weights, self.bounds):
            rows += [Rows(r.low + at, r.high + at, r.buffer, r.at) for r in weight.rows()]
        joined: list[Rows] = []
        for r in rows:  # neighbours in one buffer are one run
            last = joined[-1] if joined else None
            behind = -1 if last is None else last.at + (last.high - last.low) * self.row_bytes
            if last is not None and last.buffer is r.buffer and behind == r.at:
                joined[-1] = Rows(last.low, r.high, r.buffer, last.at)
            else:
                joined.append(r)
        yield from pieces(joined, self.row_bytes, limit, 64, most)


def pair_bounds(part: Part, low: int) -> tuple[int, int]:
    """Where the second and the third pair begin, counted from column `low` of the part (FAR: not there)."""
    inner = [max(0, b - low) for b in part.bounds[1:-1]] + [FAR] * 2
    return inner[0], inner[1]
