"""Micro-batches as recorded CUDA graphs: the packed stream has few static shapes, so a step replays without Python.

A stream is padded to one of eight sizes of tokens and of loss rows; its numbers go to the device in one small copy from
pinned memory, staged while the step before still runs. The first run of a shape is eager (it compiles and warms what it
needs), the second is recorded, all others replay. Graphs share one memory pool: they never run side by side.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace

import numpy as np
import torch

from anytune.engine.base import Stream

from .pair_gradients import flush
from .resources import Lane, Owned, page_locked, sweep, working
from .segments import Segments

Tensor = torch.Tensor
PARTS = 8  # sizes of tokens and of loss rows that get a graph of their own


@dataclass
class Recorded:
    """One shape: its numbers on the device, and its graph once it is recorded."""

    numbers: Tensor  # int32, all of the stream's numbers
    stream: Stream  # views of them
    first: Tensor
    end: Tensor
    key: Tensor
    loss: Tensor  # float64 [1]
    runs: int = 0
    graph: torch.cuda.CUDAGraph | Segments | None = None


class Recorder:
    """Runs bodies over streams for one engine."""

    def __init__(self, engine):
        self.engine, self.known, self.pool, self.own = engine, {}, None, None
        self.stage = self.readback = None
        self.graphs, self.letters = Owned(), Owned()

    def clear(self) -> None:
        """Forget all graphs, and give their memory back."""
        self.known, self.pool = {}, None
        self.graphs.free()

    def close(self) -> None:
        self.clear()
        self.stage = self.readback = None
        self.letters.free()

    @contextlib.contextmanager
    def _memory(self):
        """The pool and the stream that all runs share (torch keeps free memory by stream), so that a new shape's first
        run needs no memory beside the recorded ones'."""
        if self.pool is None:
            self.own = self.graphs.keep(Lane(self.engine.device)).stream
            self.pool = self.graphs.keep(torch.cuda.MemPool())
        with working(), torch.cuda.use_mem_pool(self.pool), beside(self.own):
            yield

    def run(self, kind: str, body, stream: Stream):
        """-> the loss: a float, or a Number that waits for the device."""
        e = self.engine
        if not e.graphs:
            e.begin(stream.starts, stream.capacity, stream.key)
            stream = replace(
                stream,
                ids=e.integers(stream.ids),
                positions=e.integers(stream.positions),
                rows=e.integers(stream.rows),
                targets=e.integers(stream.targets),
            )
            with self._gathering(kind):
                loss = body(stream)
            flush(e)
            return float(loss)
        sweep()
        if self.stage is None:
            self.stage, self.readback = self.letters.keep(Stage()), self.letters.keep(Readback())
        unit = -(-stream.capacity // PARTS // 16) * 16 or 16
        tokens, rows = (-(-n // unit) * unit for n in (len(stream.ids), len(stream.rows)))
        e.whole = len(stream.starts) == 2  # then attention may be another's
        name = (kind, e.training, tokens, rows, e.whole)
        if name not in self.known:
            self.known[name] = self._make(stream, tokens, rows)
        recorded = self.known[name]
        self.stage.send(_numbers(stream, tokens, rows), recorded.numbers)
        e.first, e.end, e.key = recorded.first, recorded.end, recorded.key
        if recorded.runs == 1 and recorded.graph is None:
            self._record(recorded, kind, body)
        recorded.runs += 1
        if recorded.graph is not None:
            with self._gathering(kind):
                recorded.graph.replay()
        else:
            with self._memory(), self._gathering(kind):
                self._body(recorded, kind, body)
        return self.readback.post(recorded.loss)

    def _gathering(self, kind: str):
        slices = self.engine.slices
        return contextlib.nullcontext() if slices is None else slices.running(kind)

    def _body(self, recorded: Recorded, kind: str, body) -> None:
        loss = body(recorded.stream)
        flush(self.engine)
        recorded.loss.copy_(loss.view(1))
        if kind == "train":
            self.engine.updater.saw(loss)

    def _record(self, recorded: Recorded, kind: str, body) -> None:
        torch.cuda.synchronize()
        self.engine.offloader.join()
        slices = self.engine.slices
        if slices is not None:
            segments = Segments(self.graphs, self.pool.id, self.own, self.engine.offloader.join)
            with working(), segments, slices.recorded(kind, segments):
                self._body(recorded, kind, body)
            recorded.graph = segments
            return
        with capture(pool=self.pool.id, stream=self.own) as graph:
            self._body(recorded, kind, body)
        recorded.graph = self.graphs.keep(graph)

    def _make(self, stream: Stream, tokens: int, rows: int) -> Recorded:
        numbers = torch.zeros(4 * tokens + 2 * rows + 4, dtype=torch.int32, device=self.engine.device)
        ids, positions, first, end, where, targets, key, scale = torch.split(
            numbers, [tokens, tokens, tokens, tokens, rows, rows, 3, 1]
        )
        views = Stream(ids, positions, None, where, targets, scale.view(torch.float32), stream.capacity)
        return Recorded(numbers, views, first, end, key, torch.zeros(1, dtype=torch.float64, device=self.engine.device))


@contextlib.contextmanager
def capture(**how):
    """-> a CUDA graph of what is launched within; whoever makes it keep()s it (resources.py)."""
    with working():
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local", **how):
            yield graph


@contextlib.contextmanager
def beside(stream):
    """What is launched within runs on `stream`, after all before it and before all behind it."""
    others = torch.cuda.current_stream()
    stream.wait_stream(others)
    with torch.cuda.stream(stream):
        yield
    others.wait_stream(stream)


def _numbers(stream: Stream, tokens: int, rows: int) -> np.ndarray:
    """int32: ids, positions, first, end [tokens each], rows, targets [rows each], key [3], scale (float32 bits).

    A padding token is an example of its own without loss; a padding row points behind the tokens and has target -1.
    """
    out = np.zeros(4 * tokens + 2 * rows + 4, np.int32)
    ids, positions, first, end = out[: 4 * tokens].reshape(4, tokens)
    have, starts = len(stream.ids), np.asarray(stream.starts, np.int32)
    lengths = np.diff(starts)
    ids[:have], positions[:have] = stream.ids, stream.positions
    first[:have], end[:have] = np.repeat(starts[:-1], lengths), np.repeat(starts[1:], lengths)
    first[have:] = np.arange(have, tokens)
    end[have:] = first[have:] + 1
    where, targets = out[4 * tokens : -4].reshape(2, rows)
    where[:], targets[:] = tokens, -1
    where[: len(stream.rows)], targets[: len(stream.rows)] = stream.rows, stream.targets
    out[-4:-1] = np.array(stream.key, np.int64).astype(np.int32)
    out[-1:].view(np.float32)[0] = stream.scale
    return out


class Stage:
    """Pinned memory for what goes to the device, a few pieces in turns,
    so that none is overwritten before it is sent."""

    TURNS = 4

    def __init__(self):
        self.slots: list[tuple[Tensor, torch.cuda.Event] | None] = [None] * self.TURNS
        self.turn = 0

    def send(self, values: np.ndarray, target: Tensor) -> None:
        """values (any 4-byte type, flat) into target, in stream order."""
        source = torch.from_numpy(values.view(np.int32))
        slot = self.slots[self.turn]
        if slot is not None:
            slot[1].synchronize()
        if slot is None or slot[0].numel() < source.numel():
            slot = (page_locked(source.numel(), torch.int32), torch.cuda.Event())
            self.slots[self.turn] = slot
        pinned = slot[0][: source.numel()]
        pinned.copy_(source)
        target.view(torch.int32).copy_(pinned, non_blocking=True)
        slot[1].record()
        self.turn = (self.turn + 1) % self.TURNS


class Future:
    """A number that the device is still working on; float() waits for it."""

    __slots__ = ("_place", "_event", "_value", "_map")

    def __init__(self, place: Tensor, event, mapping=None):
        self._place, self._event, self._value, self._map = place, event, None, mapping

    def __float__(self) -> float:
        if self._value is None:
            self._event.synchronize()
            values = self._place.tolist()
            self._value = float(self._map(values) if self._map else values[0])
            self._place = self._event = None
        return self._value


class Readback:
    """Numbers on their way from the device: pinned places in turns."""

    TURNS = 256

    def __init__(self):
        self.pinned = page_locked(2 * self.TURNS, torch.float64).view(self.TURNS, 2)
        self.letters: list[Future | None] = [None] * self.TURNS
        self.turn = 0

    def post(self, values: Tensor, mapping=None) -> Future:
        """values: at most two float64 numbers on the device."""
        at = self.turn
        if self.letters[at] is not None:
            float(self.letters[at])  # read it before its place is needed again
        place = self.pinned[at, : values.numel()]
        place.copy_(values, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self.letters[at] = Future(place, event, mapping)
        self.turn = (at + 1) % self.TURNS
        return self.letters[at]
