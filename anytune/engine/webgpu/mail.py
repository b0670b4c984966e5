"""Numbers on their way from the device."""

from __future__ import annotations

from collections.abc import Callable

from .arrays import Array


class Later:
    """A number that the device is still working on; float() waits for it."""

    __slots__ = ("_mail", "_letter", "_size", "_value", "_map")

    def __init__(self, mail: Mail, letter, size: int, mapping: Callable | None):
        self._mail, self._letter, self._size, self._map, self._value = mail, letter, size, mapping, None

    def __float__(self) -> float:
        if self._value is None:
            values = self._mail.engine.device.open_letter(self._letter, 4 * self._size)
            self._value = float(self._map(values) if self._map else values[0])
            self._mail.free.append(self._letter)
            self._letter = None
        return self._value


class Mail:
    """Small buffers that are read one after another, and used again."""

    def __init__(self, engine):
        self.engine, self.free = engine, []

    def post(self, source: Array, count: int = 1, mapping: Callable | None = None) -> Later:
        """The first `count` float32 (at most four) of an array, as they are once everything queued so far is done."""
        device = self.engine.device
        self.engine.commands.flush()
        letter = self.free.pop() if self.free else device.letter()
        device.post(source.buffer, 4 * source.at, 4 * count, letter)
        return Later(self, letter, count, mapping)
