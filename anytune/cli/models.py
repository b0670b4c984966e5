"""anytune models: every GGUF model on this machine."""

from __future__ import annotations

import click

from anytune.cli.command import Command
from anytune.cli.options import json_option
from anytune.cli.say import print_json


@click.command(
    cls=Command,
    short_help="List the models on this machine.",
    example="""
    anytune models
    anytune train -m ollama:qwen3:1.7b -f chats.jsonl
""",
)
@json_option
def models(as_json: bool) -> None:
    """List every GGUF model on this machine: of Ollama, LM Studio, llama.cpp, Hugging Face's cache and anytune's own.

    The name in the first column is what -m accepts. Models are used in place: nothing is copied or changed. A file
    shared by several stores is listed once.
    """
    from anytune.hub.catalog import models as find
    from anytune.units import bytes_text, quantity

    rows = find()
    if as_json:
        print_json([row.as_dict() for row in rows])
        return
    if not rows:
        click.echo("No models were found.  Fetch one: anytune pull smollm2-135m  (anytune pull --list shows others)")
        return
    table = [("NAME", "ARCHITECTURE", "TYPE", "PARAMETERS", "SIZE", "TRAINABLE")]
    for row in rows:
        facts = row.facts
        table.append(
            (
                row.stored.name,
                facts.architecture or "-",
                facts.type or "-",
                quantity(facts.parameters) if facts.parameters else "-",
                bytes_text(row.bytes),
                "yes" if facts.reason is None else f"no: {facts.reason}",
            )
        )
    widths = [max(len(line[i]) for line in table) for i in range(5)]
    for line in table:
        click.echo("  ".join([*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[5]]))
