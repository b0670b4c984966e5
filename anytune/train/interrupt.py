"""Ctrl-C, SIGTERM and a lost terminal: the first asks for an orderly stop, the second leaves at once."""

from __future__ import annotations

import contextlib
import os
from typing import Any

from anytune.signals import handled


class Interrupts:
    """While active, `stop` turns true at the first request to stop (see signals.py); the second raises
    KeyboardInterrupt.

    Outside the main thread nothing is caught; whoever runs a trainer in a thread sets `stop` itself. quiet: no message.
    """

    def __init__(self, quiet: bool = False):
        self.stop, self.quiet, self._held = False, quiet, contextlib.ExitStack()

    def __enter__(self) -> Interrupts:
        self._held.enter_context(handled(self._caught))
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def _caught(self, _number: int, _frame: Any) -> None:
        if self.stop:
            raise KeyboardInterrupt
        self.stop = True
        if self.quiet:
            return
        with contextlib.suppress(OSError):  # not print(): a handler must not enter a buffered stream again
            os.write(2, b"\nStopping after this micro-batch; again to leave at once.\n")
