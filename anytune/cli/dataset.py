"""The options that say what the data is and how it is read, shared by `train` and `data preview`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from anytune.cli.options import template_option
from anytune.text.formats import FORMATS, LOSS

KEYS = {  # roles that a column can be named for -> what --help says
    "messages": "Column with the messages.",
    "text": "Column with the text.",
    "prompt": "Column with the prompt.",
    "completion": "Column with the completion.",
    "system": "Column with the system message.",
    "tools": "Column with the tools.",
    "context": "Column with the passage that a prompt is about; it is joined with the prompt.",
    "reasoning": "Column with the reasoning before the completion.",
}

FORMAT = click.option(
    "--format",
    type=click.Choice(FORMATS),
    default="auto",
    show_default=True,
    help="The data's format, if it should not be detected.",
)


class _Column(click.types.StringParamType):
    """The name of a column; empty text, such as an unset variable of a shell, is none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not str(value).strip():
            self.fail("the name of a column is needed, not empty text.", param, ctx)
        return super().convert(value, param, ctx)


COLUMN = _Column()


def dataset_options(command: Callable) -> Callable:
    """Add -f and the options of reading; the command gets the columns as `keys`."""
    import functools

    @functools.wraps(command)
    def gathered(*args: Any, **kwargs: Any) -> Any:
        keys = {name: kwargs.pop(f"{name}_key") for name in KEYS}
        if kwargs.pop("assistant_loss_only"):
            if kwargs["loss"] == "all":
                raise click.UsageError(
                    "--assistant-loss-only and --loss all contradict each other: give one of them.",
                    click.get_current_context(),
                )
            kwargs["loss"] = "assistant"
        return command(*args, keys=keys, **kwargs)

    options = [
        click.option(
            "-f",
            "--file",
            "files",
            multiple=True,
            required=True,
            metavar="DATA",
            help="Data: JSONL of messages, ShareGPT, Alpaca, prompt/completion or text, plain text, .gz of any, a "
            "folder saved by the datasets library, or hf:owner/dataset; - is standard input. May be repeated.",
        ),
        click.option(
            "--loss",
            type=click.Choice(LOSS),
            default="auto",
            show_default=True,
            help="What is learned. auto: the assistant's turns of chats, the completions of pairs, all of plain "
            "text. assistant: the same, but plain text is refused. all: every token.",
        ),
        click.option("--assistant-loss-only", is_flag=True, help="The same as --loss assistant."),
        template_option,
        FORMAT,
        click.option(
            "--overflow",
            type=click.Choice(["split", "truncate", "drop", "error"]),
            help="What to do with examples longer than -c.  [default: truncate chats, split text]",
        ),
    ]
    options += [click.option(f"--{name}-key", type=COLUMN, metavar="COLUMN", help=text) for name, text in KEYS.items()]
    for option in reversed(options):
        gathered = option(gathered)
    return gathered


def columns_from(keys: dict[str, str | None]) -> dict[str, str] | None:
    """The columns that were named, or None."""
    return {name: key for name, key in keys.items() if key} or None
