"""What a caller wants to be told of a run, and how it stops one: on_step, on_evaluate, on_checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anytune.errors import UserError

Row = dict[str, Any]
EVENTS = ("on_step", "on_evaluate", "on_checkpoint")


@dataclass(frozen=True)
class Callbacks:
    """Functions that a run calls; any object with some of these methods serves as well.

    on_step        after each optimizer step, with its row of metrics (see docs/run-folder.md)
    on_evaluate    after each evaluation, with the row of its step, whose val_loss is set
    on_checkpoint  after a checkpoint is written, with its path

    One that returns False stops the run as Ctrl-C does: the checkpoint and the result so far are written, and the Run
    is returned. One that raises does the same, and then its exception goes on to the caller.
    """

    on_step: Callable[[Row], Any] | None = None
    on_evaluate: Callable[[Row], Any] | None = None
    on_checkpoint: Callable[[Path], Any] | None = None


class Calls:
    """The callbacks of one run. asked: one of them has asked for a stop. error: what one of them raised."""

    def __init__(self, given: Any = None, progress: Callable[[Row], Any] | None = None):
        """given: a Callbacks, an object like it, a dict of functions, or several of these. progress: called with each
        row, and what it returns is nothing. Raises UserError."""
        self.each = list(map(_functions, _several(given)))
        if progress is not None:
            self.each.append({"on_step": lambda row: (progress(row), None)[1]})
        self.asked, self.error = False, None

    def __call__(self, event: str, what: Any) -> bool:
        """Call all that want to know of `event`; whether the run is to stop. Once one has raised, none is called."""
        for functions in self.each:
            if self.error is None and event in functions:
                try:
                    self.asked |= functions[event](what) is False
                except BaseException as error:  # Ctrl-C in it as well: the run's state is kept first
                    self.error = error
        return self.asked or self.error is not None


def _several(given: Any) -> Iterable[Any]:
    if given is None:
        return ()
    return given if isinstance(given, list | tuple) else (given,)


def _functions(given: Any) -> dict[str, Callable[[Any], Any]]:
    if isinstance(given, type):
        raise UserError(f"callbacks takes objects, but {given.__name__} is a class: give {given.__name__}().")
    get = given.get if isinstance(given, Mapping) else lambda name: getattr(given, name, None)
    found = {event: function for event in EVENTS if (function := get(event)) is not None}
    unknown = [str(name) for name in given if name not in EVENTS] if isinstance(given, Mapping) else []
    if unknown or not (found or isinstance(given, Callbacks | Mapping)):
        what = f"the event {unknown[0]!r}" if unknown else f"{given!r:.80}"
        raise UserError(f"callbacks cannot use {what}: give functions or methods named {', '.join(EVENTS)}.")
    wrong = next((event for event, function in found.items() if not callable(function)), None)
    if wrong is not None:
        raise UserError(f"callbacks: {wrong} must be a function, not {found[wrong]!r:.80}.")
    return found
