"""The limits of time and size for one rendering of a template, and what it has used of them. See sandbox.py."""

from __future__ import annotations

import time
from typing import Any

from jinja2.utils import Namespace

SECONDS = 3.0  # of this thread's processor time, for one rendering
BASE = 8 << 20  # what a rendering may make in all, in characters, besides 64 times its input
NUMBER_BITS = 4096
DEPTH = 64


class LimitError(Exception):
    """A template went over its limit of time or memory."""


class Meter:
    """What one rendering has used. budget: characters (or list entries, eightfold) that it may still make."""

    def __init__(self, given: int) -> None:
        self.budget = BASE + 64 * given
        self.deadline = time.thread_time() + SECONDS

    def tick(self) -> None:
        if time.thread_time() > self.deadline:
            raise LimitError(f"it ran for more than {SECONDS:g} seconds")

    def spend(self, size: int) -> None:
        """Before something of this size is made."""
        self.budget -= size
        if self.budget < 0:
            raise LimitError("it produces far more text than a chat needs")

    def made(self, value: Any) -> Any:
        """After a value was made: charge its whole size. What it shares with others counts each time, so that
        lists of lists of lists cannot hide an exponential size."""
        self.tick()
        self._measure(value, 0)
        return value

    def _measure(self, value: Any, depth: int) -> None:
        if isinstance(value, str | bytes):
            self.spend(len(value))
        elif isinstance(value, int):
            if value.bit_length() > NUMBER_BITS:
                raise LimitError("it computes an enormous number")
        elif isinstance(value, dict | list | tuple | set | frozenset | Namespace):
            if depth > DEPTH:
                raise LimitError("it nests values too deeply")
            if isinstance(value, Namespace):
                value = object.__getattribute__(value, "_Namespace__attrs")
            self.spend(8 * len(value) + 8)
            for item in value:
                self._measure(item, depth + 1)
            if isinstance(value, dict):
                for item in value.values():
                    self._measure(item, depth + 1)
