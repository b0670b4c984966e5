"""What a shell completes: files where a flag takes one, names of models and types."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem

FILES = ("FILE", "GGUF", "ADAPTER", "DATA", "PATH", "IN", "REPORT", "FILE|NAME", "[NAME=]ADAPTER", "TEXTS")


def complete(parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Completions for a parameter whose type is plain text."""
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
