"""Ctrl-C, SIGTERM and a lost terminal: the first asks for an orderly stop, the second leaves at once."""

from __future__ import annotations

import contextlib
import os
import signal
import threading


class Interrupts:
    """While active, `stop` turns true at the first of SIGNALS; the second raises KeyboardInterrupt.

    Signals that are ignored (nohup) stay so. Outside the main thread nothing is caught (Python allows
    handlers only there); whoever runs a trainer in a thread sets `stop` itself. quiet: no message.
    """

    SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))

    def __init__(self, quiet: bool = False):
        self.stop, self.quiet, self._old = False, quiet, {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for number in self.SIGNALS:
                if signal.getsignal(number) == signal.SIG_IGN:
                    continue
                self._old[number] = signal.signal(number, self._caught)
        return self

    def __exit__(self, *_):
        for number, old in self._old.items():
            signal.signal(number, old if old is not None else signal.SIG_DFL)
        self._old = {}

    def _caught(self, number, frame):
        if self.stop:
            raise KeyboardInterrupt
        self.stop = True
        if self.quiet:
            return
        with contextlib.suppress(OSError):  # not print(): a handler must not enter a buffered stream again
            os.write(2, b"\nStopping after this micro-batch; again to leave at once.\n")
