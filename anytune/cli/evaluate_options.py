"""What evaluations share: the options of a run that lets base and adapters answer, and what they mean."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from anytune.cli.dataset import COLUMN
from anytune.cli.opening import load_adapter, model_path
from anytune.cli.options import forced, stop_option, template_option
from anytune.cli.sampling import DEFAULTS, SAMPLING
from anytune.cli.say import note
from anytune.errors import UserError
from anytune.files import check_output

if TYPE_CHECKING:
    from anytune.adapter.adapter import Adapter
    from anytune.evaluation.kept import Kept
    from anytune.model import Model

GREEDY = DEFAULTS | {"temperature": 0.0, "seed": 42}  # and seeded: a second run says the same


def answering_options(command: Callable) -> Callable:
    """Options of a run that lets base and adapters answer prompts; the command gets `sampling` as a dict."""

    @functools.wraps(command)
    def gathered(*args: Any, **kwargs: Any) -> Any:
        return command(*args, sampling={name: kwargs.pop(name) for name, *_ in SAMPLING}, **kwargs)

    options = [
        click.option(
            "--lora",
            "loras",
            multiple=True,
            metavar="[NAME=]ADAPTER",
            help="An adapter: a GGUF file or a peft folder. May be repeated.",
        ),
        click.option(
            "-o",
            "--output",
            "outputs",
            multiple=True,
            metavar="REPORT",
            help="Write a report: .html for people, .json for programs. May be repeated.",
        ),
        click.option(
            "-n",
            "--predict",
            "--n-predict",
            "max_tokens",
            type=click.IntRange(1),
            default=256,
            show_default=True,
            help="Maximum tokens per answer.",
        ),
        click.option("--limit", type=click.IntRange(1), metavar="N", help="Only the first N prompts."),
        click.option(
            "-npl",
            "--parallel",
            "batch",
            type=click.IntRange(1),
            default=8,
            show_default=True,
            help="Prompts answered at once.",
        ),
        stop_option,
        click.option(
            "--raw/--chat",
            "raw",
            default=None,
            help="Continue prompts as plain text, or as a user's message.  [default: as `anytune generate`]",
        ),
        template_option,
    ]
    options += [
        click.option(f"--{role}-key", f"{role}_key", type=COLUMN, metavar="COLUMN", help=f"Column with the {role}.")
        for role in ("messages", "prompt", "completion")
    ]
    options += [
        click.option(*flags, name, type=kind, default=GREEDY[name], show_default=True, help=text)
        for name, flags, kind, text in SAMPLING
    ]
    for option in reversed(options):
        gathered = option(gathered)
    return gathered


def columns_of(rest: dict[str, Any]) -> dict[str, str]:
    """Take the columns that were named out of the options."""
    named = {role: rest.pop(f"{role}_key") for role in ("messages", "prompt", "completion")}
    columns = {role: column for role, column in named.items() if column}
    if "prompt" in columns and "completion" not in columns:
        columns = {"text": columns["prompt"]}  # prompts without answers
    return columns


def adapters_of(loras: tuple[str, ...], model: Model) -> dict[str, Adapter]:
    """name -> Adapter, for FILE (named after the file) or NAME=FILE."""
    found: dict[str, Adapter] = {}
    for given in loras:
        name, path = named(given)
        if name in found:
            raise UserError(f"Two adapters are called {name}: name them with --lora NAME=FILE.")
        adapter = load_adapter(path, model)
        assert adapter is not None
        found[name] = adapter
    return found


def named(given: str) -> tuple[str, str]:
    """(name, path) of FILE or NAME=FILE."""
    name, equals, path = given.partition("=")
    return (name, path) if equals and not Path(given).exists() else (Path(given).stem or given, given)


def report_places(outputs: tuple[str, ...], model: str, loras: tuple[str, ...], **inputs: str | None) -> list[Path]:
    """Where reports go, which must be none of what is read. inputs: what each is, in one word -> its path."""
    from anytune.evaluation.report import check_path

    places = [check_path(path) for path in outputs]
    for place in places:
        check_output(
            place,
            forced(),
            [
                ("the model", model_path(model)),
                *(("an adapter", named(lora)[1]) for lora in loras),
                *((f"the {what}", path) for what, path in inputs.items()),
            ],
        )
    return places


def keeping(places: list[Path]) -> Kept:
    """Where answers are kept until the report is written: beside the first one."""
    from anytune.evaluation.kept import Kept

    return Kept(places[0] if places else None, note)
