"""anytune adapt: adapters without gradients. A file each; the options that they share: adapt_options.py."""

from __future__ import annotations

from collections.abc import Callable

import click

from anytune.cli.command import OrderedGroup
from anytune.cli.progress import Progress


@click.group(cls=OrderedGroup, short_help="Make adapters from activations, without gradients.")
def adapt() -> None:
    """Make adapters without gradients: distil, compress, repair, merge, from activations.

    A teacher and the model run over the same data, and each layer's change is solved for in closed form: a minute where
    training takes many. Each command holds out examples and prints how far the result is from its teacher on them, next
    to a simple alternative.
    """


class Bars:
    """A line of progress for each piece of work."""

    UNITS = {"layers": "layers", "gradient steps": "steps", "answers of the teacher": "prompts"}

    def __init__(self, quiet: bool):
        self.quiet, self.what, self.bar = quiet, "", None

    def tell(self, what: str, done: int, total: int, remark: str = "") -> None:
        if what != self.what:
            self.close()
            self.what, self.bar = what, Progress(what, self.UNITS.get(what, "layers"), quiet=self.quiet)
        self.bar.to(done, total, remark)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.__exit__()
        self.what, self.bar = "", None

    def __enter__(self) -> Bars:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def interruptible(output: str, work: Callable[[], int]) -> int:
    """work(), where Ctrl-C says how to go on; the exit code is then 130."""
    try:
        return work()
    except KeyboardInterrupt:
        from pathlib import Path

        left = Path(output).with_name(f"{Path(output).name}.partial")
        click.echo(
            "Interrupted. "
            + (
                f"The layers that are done are kept in {left}: the same command with --resume goes on."
                if left.exists()
                else "Nothing was done yet."
            ),
            err=True,
        )
        return 130
