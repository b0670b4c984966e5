"""anytune data preview: what the model will see, token by token."""

from __future__ import annotations

import sys
from typing import Any

import click

from anytune.cli.command import Command
from anytune.cli.data_build import build
from anytune.cli.dataset import columns_from, dataset_options
from anytune.cli.opening import data_files, model_path, template_file
from anytune.cli.options import json_option, model_option
from anytune.cli.say import print_json


@click.group()
def data() -> None:
    """Inspect training data, or build it."""


data.add_command(build)


@data.command(
    cls=Command,
    short_help="Show tokens and loss mask as the model will see them.",
    renamed={"-n": "--examples"},
    example="""
    anytune data preview -m model.gguf -f chats.jsonl
    anytune data preview -m model.gguf -f chats.jsonl --examples 1 --json
""",
)
@model_option
@dataset_options
@click.option(
    "-c",
    "--ctx-size",
    "--context",
    "context",
    type=click.IntRange(2),
    default=512,
    show_default=True,
    help="Tokens of the longest example.",
)
@click.option("--examples", type=click.IntRange(0), default=3, show_default=True, help="Examples to show.")
@click.option("--skip", type=click.IntRange(0), default=0, help="Examples to skip first.")
@click.option("--color/--no-color", default=None, help="Colours or brackets.  [default: colours on a terminal]")
@json_option
def preview(
    model: str,
    files: tuple[str, ...],
    loss: str,
    chat_template: str | None,
    format: str,
    overflow: str | None,
    keys: dict[str, str | None],
    context: int,
    examples: int,
    skip: int,
    color: bool | None,
    as_json: bool,
) -> None:
    """Show what the model will see: every token, those with loss in green (or in [brackets]), and the counts.

    Reads only the model's tokenizer and template, not its weights.
    """
    path = model_path(model)
    files = data_files(files)
    if chat_template is not None:
        template_file(chat_template)
    from anytune.text.preview import preview as look
    from anytune.text.preview import LEGEND, render

    found = look(
        path,
        list(files),
        examples=examples,
        skip=skip,
        chat_template=chat_template,
        context=context,
        loss=loss,
        format=format,
        columns=columns_from(keys),
        overflow=overflow,
    )
    if as_json:
        print_json(found.as_dict())
        return
    colour = sys.stdout.isatty() if color is None else color
    if found.examples:
        click.echo(f"({LEGEND[colour]})")
    for example in found.examples:
        tokens = example["tokens"]
        click.echo(
            f"--- example {example['index'] + 1}, {example['where']}: {len(tokens)} tokens, "
            f"{sum(loss for *_, loss in tokens)} with loss"
        )
        click.echo(render(tokens, colour), color=colour)
    click.echo(_counts(found.counts, found.template))


def _counts(counts: dict[str, Any], template: str) -> str:
    part = counts["loss_tokens"] / max(counts["tokens"], 1)
    lines = [
        f"{counts['examples']:,} examples, {counts['tokens']:,} tokens, {counts['loss_tokens']:,} of them "
        f"with loss ({part:.0%}); the longest has {counts['longest']:,}; template: {template}"
    ]
    report = counts["report"]
    lines += [f"  learned: {report['learned']}"]
    lines += [
        f"  {name.replace('_', ' ')}: {value:,}"
        for name, value in report.items()
        if name not in counts and isinstance(value, int) and value
    ]
    lines += [f"  {sentence}" for sentence in report.get("notes", ())]
    return "\n".join(lines)
