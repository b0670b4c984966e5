"""anytune evaluate: what an adapter changed, measured on prompts and held-out messages."""

from __future__ import annotations

from typing import Any

import click

from anytune.cli.command import Command
from anytune.cli.evaluate_options import adapters_of, answering_options, columns_of, keeping, report_places
from anytune.cli.evaluate_said import Phases, outlook, tell
from anytune.cli.evaluate_score import score
from anytune.cli.opening import load_model, text_file
from anytune.cli.options import force_option, json_option, model_options
from anytune.cli.sampling import read_template
from anytune.errors import UserError


@click.group()
def evaluate() -> None:
    """Measure what an adapter changed."""


evaluate.add_command(score)


@evaluate.command(
    cls=Command,
    short_help="Measure how close answers come to an author's held-out messages.",
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
    """Have the base and its adapters answer what the author answered, and measure how close they come to the author.

    Style is measured as distances to the author's messages: function words (Burrows's Delta), punctuation, sentence
    length and recurring lines; random halves of the author's messages show which distances mean nothing. Also reports
    the messages' perplexity and the measures of `evaluate compare`.
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
