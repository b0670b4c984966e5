"""Micro-batches as recorded lists of dispatches: the packed stream has few static shapes, so a step needs no Python.

A stream is padded to one of eight sizes of tokens and of loss rows. Its numbers go to the device in one small write.
The first run of a shape is queued as it is recorded; all others encode the same dispatches again. Temporary
arrays come from one pool, whose buffers stay in place: recordings never run at the same time.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from anytune.engine.base import Stream

from .arrays import Array, Pool, lines

OF_STREAM = (
    "pool",
    "capacity",
    "bounds",
    "key",
    "real",
    "loss_rows",
    "trimmed",
)  # attributes of an engine that are a stream's
PARTS = 8  # sizes of tokens and of loss rows that get a recording of their own


@dataclass
class Recorded:
    """One shape: its numbers on the device, and its dispatches once they are recorded."""

    numbers: Array  # int32, all of the stream's numbers
    stream: Stream  # views of them
    bounds: Array
    key: Array
    real: Array  # int32 [2]: tokens and loss rows that are no padding
    loss: Array  # float32 [1]
    tape: list = field(default_factory=list)
    kept: dict = field(default_factory=dict)


class Recorder:
    """Runs bodies over streams for one engine."""

    def __init__(self, engine):
        self.engine, self.known, self.running = engine, {}, False
        self.pool, self.capacity = Pool(engine.device), 0

    def clear(self) -> None:
        """Forget all recordings, and give their memory back."""
        self.known, self.capacity = {}, 0
        self.engine.commands.flush()
        self.pool.clear()

    def run(self, kind: str, body, stream: Stream):
        """-> the loss, a Number."""
        e = self.engine
        if stream.capacity != self.capacity:
            self.clear()
            self.capacity = stream.capacity
        unit = -(-stream.capacity // PARTS // 16) * 16 or 16
        tokens, rows = (-(-n // unit) * unit for n in (len(stream.ids), len(stream.rows)))
        name = (kind, e.training, tokens, rows)
        recorded = self.known.get(name)
        fresh = recorded is None
        if fresh:
            e.tuning.ensure()
            recorded = self._make(stream, tokens, rows)
        e.commands.write(recorded.numbers, _numbers(stream, tokens, rows))
        if fresh:
            self._record(recorded, kind, body)
            self.known[name] = recorded
        else:
            e.commands.play(recorded.tape)
        return e.readback.post(recorded.loss)

    def _record(self, recorded: Recorded, kind: str, body) -> None:
        from .kernels.optimizer import add_up

        e = self.engine
        before = {name: getattr(e, name) for name in OF_STREAM}
        e.pool, e.capacity, e.loss_rows, e.trimmed = self.pool, self.capacity, recorded.stream.rows, False
        e.bounds, e.key, e.real = recorded.bounds, recorded.key, recorded.real
        self.running = True
        e.commands.record()
        try:
            loss = body(recorded.stream)
            e.commands.run(add_up(), [loss, recorded.loss], (1, 0, 0, 0), (1,))
            if kind == "train":
                e.updater.watch(recorded.loss)
            recorded.tape, recorded.kept = e.commands.recorded()
        except BaseException:
            e.commands.discard()
            raise
        finally:
            self.running = False
            for name, value in before.items():
                setattr(e, name, value)

    def _make(self, stream: Stream, tokens: int, rows: int) -> Recorded:
        numbers = self.engine.integers(np.zeros(sum(map(lines, _sizes(tokens, rows))), np.int32))
        views, at = [], 0
        for size in _sizes(tokens, rows):
            views.append(numbers[at : at + size])
            at += lines(size)
        ids, positions, bounds, where, targets, key, scale, real = views
        return Recorded(
            numbers,
            Stream(ids, positions, None, where, targets, scale, stream.capacity),
            bounds,
            key,
            real,
            self.engine.zeros(1),
        )


def _sizes(tokens: int, rows: int) -> tuple[int, ...]:
    """ids, positions, first and end of each token's example, rows, targets, key, scale, tokens and rows that are no
    padding."""
    return tokens, tokens, 2 * tokens, rows, rows, 3, 1, 2


def example_bounds(starts: np.ndarray) -> np.ndarray:
    """int32 [2, T]: where each token's example begins and ends."""
    starts = np.asarray(starts, np.int32)
    lengths = np.diff(starts)
    return np.stack([np.repeat(starts[:-1], lengths), np.repeat(starts[1:], lengths)])


def _numbers(stream: Stream, tokens: int, rows: int) -> np.ndarray:
    """A padding token is an example of its own without loss; a padding row points behind the tokens and has target
    -1."""
    parts = [np.zeros(size, np.int32) for size in _sizes(tokens, rows)]
    ids, positions, bounds, where, targets, key, scale, real = parts
    have = len(stream.ids)
    ids[:have], positions[:have] = stream.ids, stream.positions
    bounds = bounds.reshape(2, tokens)
    bounds[:, :have] = example_bounds(stream.starts)
    bounds[0, have:] = np.arange(have, tokens)
    bounds[1, have:] = bounds[0, have:] + 1
    where[:], targets[:] = tokens, -1
    where[: len(stream.rows)], targets[: len(stream.rows)] = stream.rows, stream.targets
    key[:] = np.array(stream.key, np.int64).astype(np.int32)
    scale.view(np.float32)[0] = stream.scale
    real[:] = have, len(stream.rows)
    return np.concatenate([np.pad(p, (0, lines(p.size) - p.size)) for p in parts])
