"""What a shell completes: files where a flag takes one, names of models and types; and the script that asks."""

from __future__ import annotations

from typing import Any

import click
from click.shell_completion import CompletionItem, get_completion_class

from anytune.cli.command import Command

SHELLS = ("bash", "zsh", "fish")
FILES = ("FILE", "GGUF", "ADAPTER", "DATA", "PATH", "IN", "REPORT", "FILE|NAME", "[NAME=]ADAPTER", "TEXTS")
INSTALL = {
    "bash": 'eval "$(anytune completion bash)"   # in ~/.bashrc',
    "zsh": 'eval "$(anytune completion zsh)"    # in ~/.zshrc',
    "fish": "anytune completion fish > ~/.config/fish/completions/anytune.fish",
}


def complete(parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """What may stand for a parameter whose type is plain text."""
    shown = getattr(parameter, "metavar", None) or ""
    found: list[CompletionItem] = []
    if parameter.name in ("model", "models", "name"):
        from anytune.hub.pull import KNOWN

        found = [CompletionItem(name) for name in KNOWN if name.startswith(incomplete)]
    if shown == "FOLDER":
        return [*found, CompletionItem(incomplete, type="dir")]
    if shown in FILES:
        return [*found, CompletionItem(incomplete, type="file")]
    if "TYPE" in shown:
        from anytune.quantization.filetypes import FILE_TYPES

        found += [CompletionItem(name) for name in FILE_TYPES if name.lower().startswith(incomplete.lower())]
    return found


@click.command(cls=Command, short_help="Print a shell completion script.", example="\n".join(INSTALL.values()))
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print SHELL's completion script for anytune's commands, flags, files, models and types."""
    from anytune.cli.main import cli

    kind: Any = get_completion_class(shell)
    click.echo(kind(cli, {}, "anytune", "_ANYTUNE_COMPLETE").source())
