"""anytune info: what a GGUF file is and what can be trained in it."""

from __future__ import annotations

import click

from anytune.cli.command import Command
from anytune.cli.opening import existing_file, model_path
from anytune.cli.options import json_option
from anytune.cli.say import print_json


@click.command(
    cls=Command,
    short_help="Show what is in a GGUF file, and what training it takes.",
    example="""
    anytune info smollm2-135m
    anytune info model.gguf --json
    anytune info adapter.gguf
""",
)
@click.argument("file", required=False, metavar="GGUF")
@click.option("-m", "--model", metavar="GGUF", help="The same as the argument.")
@json_option
def info(file: str | None, model: str | None, as_json: bool) -> None:
    """Show what is in a GGUF file: architecture, sizes by quantization type, tokenizer, chat template, what can be
    trained and the memory that training takes. Works for adapter files too."""
    from anytune.info import describe, report

    if (file is None) == (model is None):
        raise click.UsageError("Name one GGUF file: anytune info model.gguf", click.get_current_context())
    path = existing_file(model_path(file or model), "model")
    facts = describe(path)
    if as_json:
        print_json(facts)
    else:
        click.echo(report(facts))
