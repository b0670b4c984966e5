"""anytune evaluate: what an adapter changed, measured on prompts and held-out messages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from anytune.cli.common import (
    Command,
    force_option,
    forced,
    json_option,
    load_adapter,
    load_model,
    model_options,
    model_path,
    note,
    print_json,
    text_file,
)
from anytune.cli.evaluate_score import score
from anytune.cli.sampling import SAMPLING, read_template
from anytune.errors import UserError
from anytune.files import check_output

if TYPE_CHECKING:
    from anytune.adapter.adapter import Adapter
    from anytune.cli.progress import Progress
    from anytune.evaluation.kept import Kept
    from anytune.evaluation.report import Report
    from anytune.model import Model

# Greedy and seeded, so that a second run says the same.
DEFAULTS = {
    "temperature": 0.0,
    "top_k": 40,
    "top_p": 0.95,
    "min_p": 0.05,
    "repeat_penalty": 1.0,
    "repeat_last_n": 64,
    "seed": 42,
}
UNITS = {"answers": "tokens", "embeddings": "texts", "judge": "pairs", "losses": "messages"}


@click.group()
def evaluate() -> None:
    """Measure what an adapter changed."""


evaluate.add_command(score)


def answering_options(command: Callable) -> Callable:
    """Options of a run that lets base and adapters answer prompts; the command gets `sampling` as a dict."""
    import functools

    @functools.wraps(command)
    def gathered(*args: Any, **kwargs: Any) -> Any:
        return command(*args, sampling={name: kwargs.pop(name) for name, *_ in SAMPLING}, **kwargs)

    options = [
        click.option(
            "--lora",
            "loras",
            multiple=True,
            metavar="[NAME=]ADAPTER",
            help="An adapter: a GGUF file or a peft folder. May be given several times.",
        ),
        click.option(
            "-o",
            "--output",
            "outputs",
            multiple=True,
            metavar="REPORT",
            help="Write a report here: .html for people, .json for programs. May be given several times.",
        ),
        click.option(
            "-n",
            "--predict",
            "max_tokens",
            type=click.IntRange(1),
            default=256,
            show_default=True,
            help="Tokens of an answer at most.",
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
        click.option("--stop", "stop", multiple=True, metavar="TEXT", help="End an answer where this text comes."),
        click.option(
            "--raw/--chat",
            "raw",
            default=None,
            help="Continue prompts as plain text, or as a user's message.  [default: as `anytune generate`]",
        ),
        click.option(
            "--chat-template",
            metavar="FILE|NAME",
            help="A Jinja chat template instead of the model's own: a file or a built-in template's name.",
        ),
    ]
    options += [
        click.option(f"--{role}-key", f"{role}_key", metavar="COLUMN", help=f"The column that holds the {role}.")
        for role in ("messages", "prompt", "completion")
    ]
    options += [
        click.option(*flags, name, type=kind, default=DEFAULTS[name], show_default=True, help=text)
        for name, flags, kind, text in SAMPLING
    ]
    for option in reversed(options):
        gathered = option(gathered)
    return gathered


@evaluate.command(
    cls=Command,
    short_help="Measure how near answers come to an author's held-out messages.",
    renamed={"-b": "--parallel", "--batch-size": "--parallel"},
    example="""
    anytune evaluate style -m model.gguf --lora mine.gguf -f data/test.jsonl -o report.html
    anytune evaluate style -m model.gguf --lora mine.gguf -f messages.jsonl -n 128 --json
""",
)
@model_options
@click.option(
    "-f",
    "--file",
    "file",
    required=True,
    metavar="FILE",
    help="Messages of one author that were not trained on: chats whose last turn is the author's, prompt and "
    "completion, or text alone.",
)
@answering_options
@force_option
@json_option
def style(
    model: str,
    engine: dict,
    file: str,
    loras: tuple[str, ...],
    outputs: tuple[str, ...],
    raw: bool | None,
    chat_template: str | None,
    sampling: dict[str, Any],
    limit: int | None,
    as_json: bool,
    **rest: Any,
) -> None:
    """Let the base and its adapters answer what the author answered, and measure how near they come to the author.

    Style is measured as distances to the author's messages: function words (Burrows's Delta), punctuation, sentence
    length and standing lines; the author's own halves show what distance means nothing. The messages' perplexity, and
    the measures of `evaluate compare`, are beside it.
    """
    from anytune.evaluation.prompts import read_prompts
    from anytune.evaluation.style import style as run
    from anytune.evaluation.style_report import report, text
    from anytune.generation.sampling import Sampling

    how = Sampling(**sampling)
    if not loras:
        raise UserError("There is nothing to compare the base with: give an adapter with --lora.")
    places = report_places(outputs, model, loras, messages=file, template=chat_template)
    columns = columns_of(rest)
    prompts = read_prompts(text_file(file, "message"), columns, limit)
    loaded = load_model(model, engine)
    sides = adapters_of(loras, loaded)
    sizes = len(prompts), len(sides) + 1, rest["max_tokens"], rest["batch"]
    with keeping(places) as kept:
        with Phases(as_json, lambda: outlook(loaded, *sizes)) as phases:
            facts = run(
                loaded,
                prompts,
                sides,
                name=file,
                how=how,
                kept=kept,
                progress=phases.to,
                chat=None if raw is None else not raw,
                template=read_template(chat_template, loaded),
                **rest,
            )
        tell(facts, report(facts), text, places, as_json)


FEW = 20  # prompts, below which the intervals are wider than what adapters usually change


def outlook(model: Model, prompts: int, sides: int, max_tokens: int, batch: int) -> None:
    """Say before a run begins how long it may take, by a short decoding, and whether its prompts decide anything."""
    import time

    from anytune.train.progress import duration

    if prompts < FEW:
        note(f"few prompts ({prompts}) decide little: the intervals will be wide; {FEW} are few, a hundred are enough")
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


def put(report: Report, places: list[Path]) -> None:
    from anytune.evaluation.report import write

    for path in places:
        write(path, report)
