"""Requests to stop: Ctrl-C, SIGTERM (of timeout, kill, a scheduler) and a lost terminal."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

STOP = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Terminated(KeyboardInterrupt):
    """Any request but Ctrl-C: it ends the whole command, never only one answer of a chat."""


def interrupt(number: int, _frame: Any) -> NoReturn:
    """A handler that raises KeyboardInterrupt, or Terminated."""
    raise KeyboardInterrupt if number == signal.SIGINT else Terminated


@contextlib.contextmanager
def handled(handler: Callable[[int, Any], Any]) -> Iterator[None]:
    """While the block runs, `handler` takes the signals of STOP, but for those that are ignored (nohup).

    Outside the main thread nothing is taken: Python allows handlers only there.
    """
    old = {}
    if threading.current_thread() is threading.main_thread():
        old = {number: before for number in STOP if (before := signal.getsignal(number)) != signal.SIG_IGN}
    try:
        for number in old:
            signal.signal(number, handler)
        yield
    finally:
        for number, before in old.items():
            signal.signal(number, before if before is not None else signal.SIG_DFL)
