"""The script by which a shell completes commands and flags; completing.py answers it."""

from __future__ import annotations

from typing import Any

import click
from click.shell_completion import get_completion_class

from anytune.cli.command import Command

SHELLS = ("bash", "zsh", "fish")
INSTALL = {
    "bash": 'eval "$(anytune completion bash)"   # in ~/.bashrc',
    "zsh": 'eval "$(anytune completion zsh)"    # in ~/.zshrc',
    "fish": "anytune completion fish > ~/.config/fish/completions/anytune.fish",
}


@click.command(cls=Command, short_help="Print a shell completion script.", example="\n".join(INSTALL.values()))
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print SHELL's completion script for anytune's commands, flags, files, models and types."""
    kind: Any = get_completion_class(shell)
    cli = click.get_current_context().find_root().command
    click.echo(kind(cli, {}, "anytune", "_ANYTUNE_COMPLETE").source())
