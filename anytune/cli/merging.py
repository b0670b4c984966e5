"""What merge, ollama and lmstudio share: the options of merging, and the table of types that grows."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from anytune.cli.export import lora_options
from anytune.cli.opening import existing_file, load_model, read_text
from anytune.cli.options import model_options
from anytune.cli.progress import Progress
from anytune.cli.say import note

if TYPE_CHECKING:
    from anytune.adapter.adapter import Adapter
    from anytune.export.distance import Served
    from anytune.model import Model

LEGEND = (
    "(change kept: the weights' change along the adapter's; rounding may overshoot, so more than 100 % is no gain. "
    "What counts is the KL to the pair of base and adapter; of its KL: relative to the KL of the adapter itself. "
    "A type on another grid than the file's own rounds every weight again, so a larger type can be further off.)"
)
NOTHING = 1e-7  # nats: what the 16-bit distributions that are compared tell from zero
OPTIONS = (
    click.option(
        "--type",
        "kind",
        metavar="TYPE",
        help="auto (the default): the file's own types if they preserve the adapter, else the smallest that do. "
        "same: the file's own. Or a type of `anytune quantize`.",
    ),
    click.option(
        "--tolerance",
        type=click.FloatRange(0),
        default=0.05,
        show_default=True,
        metavar="SHARE",
        help="Tolerance of auto: KL to the served pair, as a fraction of the adapter's own KL.",
    ),
    click.option(
        "--candidates",
        metavar="TYPE,TYPE",
        help="Types that auto and --dry-run try, instead of the file's own and finer ones.",
    ),
    click.option(
        "--tensor-type",
        "overrides",
        multiple=True,
        metavar="PATTERN=TYPE",
        help="Tensors whose names match this regular expression get this type. May be repeated.",
    ),
    click.option("--imatrix", metavar="FILE", help="Importance matrix from `anytune imatrix`."),
    click.option("-f", "--file", metavar="FILE", help="The text to compare on, instead of a short built-in one."),
    click.option(
        "--chunks",
        type=click.IntRange(2),
        metavar="N",
        default=16,
        show_default=True,
        help="Maximum number of windows of the text.",
    ),
)


@dataclass(frozen=True)
class Choice:
    """The options of merging."""

    kind: str | None
    tolerance: float
    candidates: str | None
    overrides: tuple[str, ...]
    imatrix: str | None
    file: str | None
    chunks: int

    @property
    def inputs(self) -> list[tuple[str, str | None]]:
        """What is read besides model and adapters, as files.spare_inputs takes it."""
        return [("the importance file", self.imatrix), ("the text", self.file)]


def merge_options(command: Callable) -> Callable:
    @functools.wraps(command)
    def gathered(
        *args: Any,
        kind: str | None,
        tolerance: float,
        candidates: str | None,
        overrides: tuple[str, ...],
        imatrix: str | None,
        file: str | None,
        chunks: int,
        **kwargs: Any,
    ) -> Any:
        return command(*args, choice=Choice(kind, tolerance, candidates, overrides, imatrix, file, chunks), **kwargs)

    for option in reversed(OPTIONS):
        gathered = option(gathered)
    return lora_options(model_options(gathered))


class Work:
    """One merge from the command line: the pair, the text, the table that grows."""

    def __init__(self, model: Model, adapter: Adapter | None, choice: Choice, engine: dict, as_json: bool):
        from anytune.cli.quantize import pairs
        from anytune.export.merge import Merge

        self.model, self.adapter, self.choice, self.engine, self.as_json = model, adapter, choice, engine, as_json
        self.text = None if choice.file is None else read_text(choice.file)
        imatrix = None if choice.imatrix is None else str(existing_file(choice.imatrix, "importance"))
        self.job = Merge(
            model.gguf, adapter, self.open, pairs(choice.overrides), imatrix, engine["threads"], progress=self.progress
        )
        self.facts: dict[str, Any] = {}
        self.bar: Progress | None = None

    def open(self, path: Path) -> Model:
        return load_model(str(path), self.engine)

    def progress(self, what: str, unit: str = "weights") -> Callable[[int, int], None]:
        self.close()
        self.bar = Progress(what, unit, quiet=self.as_json or not sys.stderr.isatty())  # else a line for each type
        return self.bar.to

    def close(self) -> None:
        """End the line of progress that may be unfinished."""
        if self.bar is not None:
            self.bar.__exit__()
            self.bar = None

    def served(self) -> Served:
        from anytune.export.distance import Served

        served = Served(self.model, self.adapter, self.text, chunks=self.choice.chunks)
        self.facts["tokens"] = served.facts["tokens"]
        self.facts["adapter_kl"] = None
        if self.adapter is not None:
            self.facts["adapter_kl"] = kl = served.distance(self.model)["kl"]
            self.say(f"the adapter moves the base by KL {kl:.4g} on {self.facts['tokens']} tokens")
            if kl < NOTHING:
                note("that is almost nothing: is this the right adapter, and a text of the kind it was trained on?")
        return served

    def merge(self, target: Path | None, kind: str, served: Served) -> dict[str, Any] | None:
        """Write `target` in `kind`, or in the type that auto finds; returns what was taken. No target: compare all."""
        from anytune.export.merge import candidates

        several = kind == "auto" or target is None
        names = self.choice.candidates.split(",") if self.choice.candidates else None
        kinds = candidates(self.model.gguf, names) if several else candidates(self.model.gguf, [kind])
        limit = None if target is None else self.choice.tolerance * self.facts["adapter_kl"] if several else math.inf
        self.say(
            f"{'type':<8}{'size':>11}{'weight error':>14}{'change kept':>13}{'KL to the pair':>16}"
            f"{'of its KL':>11}{'top-1':>8}"
        )
        self.facts["types"] = self.job.choose(target, kinds, served, limit, self.row)
        if not self.as_json:
            click.echo(LEGEND, err=True)  # the table alone is the result
        taken = next((row for row in self.facts["types"] if row["taken"]), None)
        if taken is not None and self.adapter is not None:
            self.warn(taken)
        return taken

    def row(self, row: dict[str, Any]) -> None:
        from anytune.units import bytes_text

        kept = "–" if row["kept"] is None else f"{row['kept']:.1%}"
        of = self.facts["adapter_kl"]
        share = f"{row['kl'] / of:.1%}" if of else "–"
        self.say(
            f"{row['type']:<8}{bytes_text(row['bytes']):>11}{row['error']:>14.2%}{kept:>13}{row['kl']:>16.3g}"
            f"{share:>11}{row['same_top']:>8.1%}"
        )

    def warn(self, taken: dict[str, Any]) -> None:
        lost = taken["kl"] / max(self.facts["adapter_kl"], 1e-12)
        if lost > self.choice.tolerance:
            note(
                f"{taken['type']} is off by {lost:.0%} of what the adapter does: a finer --type loses less, --absorb "
                "holds what is lost in a small adapter, and --lora beside the model loses nothing"
            )

    def say(self, line: str) -> None:
        self.close()
        if not self.as_json:
            click.echo(line)
