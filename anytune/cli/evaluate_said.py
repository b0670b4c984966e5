"""What an evaluation says: how long it may take, its progress, its report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from anytune.cli.say import note, print_json

if TYPE_CHECKING:
    from anytune.cli.progress import Progress
    from anytune.evaluation.report import Report
    from anytune.model import Model

UNITS = {"answers": "tokens", "embeddings": "texts", "judge": "pairs", "losses": "messages"}


FEW = 20  # prompts, below which the intervals are wider than what adapters usually change


def warn_of_few(count: int, what: str = "prompts") -> None:
    """Say so if there are too few of them to decide anything."""
    if count < FEW:
        note(f"only {count} {what}: the intervals will be wide; a hundred are enough")


def outlook(model: Model, prompts: int, sides: int, max_tokens: int, batch: int) -> None:
    """Say before a run begins how long it may take, by a short decoding, and whether its prompts decide anything."""
    import time

    from anytune.train.progress import duration

    warn_of_few(prompts)
    at_once = min(batch, prompts)
    decoder = model.decoder(batch=at_once, context=8)
    first = [[model.tokenizer.bos or 0]] * at_once
    decoder.feed(first)  # whatever is prepared once
    begun = time.perf_counter()
    for _ in range(3):
        decoder.feed(first)
    each = (time.perf_counter() - begun) / 3
    seconds = each * max_tokens * sides * -(-prompts // at_once)
    note(f"{prompts * sides} answers of up to {max_tokens} tokens: {duration(seconds)} at most")


def tell(facts: dict, made: Any, text: Callable[[dict], str], places: list, as_json: bool) -> None:
    """Write the report to its places, and the figures to the terminal."""
    put(made, places)
    if as_json:
        print_json(facts)
    else:
        click.echo("\n".join([text(facts), *map(str, places)]))


class Phases:
    """Progress of a run that does one thing after another: a line for each. first: called before the first of them,
    when the run has refused nothing."""

    def __init__(self, quiet: bool, first: Callable[[], None] | None = None):
        self.quiet, self.first, self.name, self.progress = quiet, first, "", None

    def to(self, name: str, done: int, total: int) -> None:
        if self.first is not None:
            first, self.first = self.first, None
            first()
        if name != self.name:
            self.__exit__()
            self.name, self.progress = name, self._new(name)
        if self.progress is not None:
            self.progress.to(done, total)

    def _new(self, name: str) -> Progress:
        from anytune.cli.progress import Progress

        return Progress(name, UNITS.get(name, name), self.quiet)

    def __enter__(self) -> Phases:
        return self

    def __exit__(self, *_: object) -> None:
        if self.progress is not None:
            self.progress.__exit__()


def put(report: Report, places: list[Path]) -> None:
    from anytune.evaluation.report import write

    for path in places:
        write(path, report)
