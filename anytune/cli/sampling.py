"""The options of `generate` and `chat`, with llama.cpp's names and defaults, as a table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from anytune.cli.options import stop_option, template_option

SAMPLING = (  # (field of Sampling, flags, type, help)
    ("temperature", ("--temp", "--temperature"), float, "0: always the most likely token."),
    ("top_k", ("--top-k",), int, "Keep the k most likely tokens; 0 keeps all."),
    ("top_p", ("--top-p",), float, "Keep the fewest tokens whose probabilities reach p; 1 keeps all."),
    ("min_p", ("--min-p",), float, "Drop tokens less likely than this fraction of the most likely one's probability."),
    ("repeat_penalty", ("--repeat-penalty",), float, "Values above 1 make recent tokens less likely."),
    ("repeat_last_n", ("--repeat-last-n",), int, "Number of tokens that count as recent; -1: all."),
    ("seed", ("-s", "--seed"), int, "The same seed gives the same text; -1: a new one each time."),
)
DEFAULTS = {
    "temperature": 0.8,
    "top_k": 40,
    "top_p": 0.95,
    "min_p": 0.05,
    "repeat_penalty": 1.0,
    "repeat_last_n": 64,
    "seed": -1,
}


def sampling_options(command: Callable) -> Callable:
    """Add the table's options, -c, --stop and --chat-template; the command gets `sampling` as a dict."""
    import functools

    @functools.wraps(command)
    def gathered(*args: Any, **kwargs: Any) -> Any:
        sampling = {name: kwargs.pop(name) for name, *_ in SAMPLING}
        return command(*args, sampling=sampling, **kwargs)

    for name, flags, kind, text in reversed(SAMPLING):
        gathered = click.option(*flags, name, type=kind, default=DEFAULTS[name], show_default=True, help=text)(gathered)
    for option in (
        template_option,
        stop_option,
        click.option(
            "-c",
            "--ctx-size",
            "--context",
            "context",
            type=click.IntRange(1),
            metavar="N",
            help="Context in tokens, for prompt and answer together.  [default: as much as needed]",
        ),
    ):
        gathered = option(gathered)
    return gathered


def read_template(path: str | None, model: Any) -> Any:
    """The ChatTemplate of --chat-template, or None."""
    if path is None:
        return None
    from anytune.cli.opening import template_file
    from anytune.text import ChatTemplate

    return ChatTemplate.for_model(model.gguf, model.tokenizer, file=template_file(path))
