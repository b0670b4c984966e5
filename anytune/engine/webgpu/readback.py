"""Numbers on their way from the device."""

from __future__ import annotations

from collections.abc import Callable

from .arrays import Array


class Future:
    """A number that the device is still working on; float() waits for it."""

    __slots__ = ("_readback", "_staging_buffer", "_size", "_value", "_map")

    def __init__(self, readback: Readback, staging_buffer, size: int, mapping: Callable | None):
        self._readback, self._staging_buffer, self._size = readback, staging_buffer, size
        self._map, self._value = mapping, None

    def __float__(self) -> float:
        if self._value is None:
            values = self._readback.engine.device.read_staging_buffer(self._staging_buffer, 4 * self._size)
            self._value = float(self._map(values) if self._map else values[0])
            self._readback.free.append(self._staging_buffer)
            self._staging_buffer = None
        return self._value


class Readback:
    """Small buffers that are read one after another, and used again."""

    def __init__(self, engine):
        self.engine, self.free = engine, []

    def post(self, source: Array, count: int = 1, mapping: Callable | None = None) -> Future:
        """The first `count` float32 (at most four) of an array, as they are once everything queued so far is done."""
        device = self.engine.device
        self.engine.commands.flush()
        staging_buffer = self.free.pop() if self.free else device.staging_buffer()
        device.post(source.buffer, 4 * source.at, 4 * count, staging_buffer)
        return Future(self, staging_buffer, count, mapping)
