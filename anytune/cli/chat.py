"""anytune chat: a conversation in the terminal, or over a pipe."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

import click

from anytune.cli.command import Command
from anytune.cli.opening import load_adapter, load_model
from anytune.cli.options import lora_option, model_options
from anytune.cli.sampling import read_template, sampling_options
from anytune.cli.say import note
from anytune.errors import UserError
from anytune.signals import Terminated

HELP = "/reset clears the conversation, /system TEXT sets the system message and starts over, /exit quits"


@click.command(
    cls=Command,
    example="""
    anytune chat -m model.gguf --lora adapter.gguf
    printf 'Hi\\nAnd in French?\\n' | anytune chat -m model.gguf --temp 0
""",
)
@model_options
@lora_option
@click.option(
    "-n",
    "--predict",
    "--n-predict",
    "max_tokens",
    type=click.IntRange(-1),
    default=-1,
    show_default=True,
    help="Maximum tokens per answer; -1: until the model ends its turn.",
)
@click.option("-sys", "--system", "--system-prompt", "system", metavar="TEXT", help="A system message.")
@sampling_options
def chat(
    model: str,
    engine: dict,
    lora: str | None,
    max_tokens: int,
    system: str | None,
    chat_template: str | None,
    stop: tuple[str, ...],
    context: int | None,
    sampling: dict[str, Any],
) -> None:
    """Talk to a model, with or without an adapter.

    Answers are streamed; Ctrl-C stops an answer, Ctrl-D or /exit quits. /reset and /system TEXT start over.
    From a pipe, each line is one message and only the answers are printed.
    """
    from anytune.generation.sampling import Sampling

    how = Sampling(**sampling)
    loaded = load_model(model, engine)
    adapter = load_adapter(lora, loaded)
    from anytune.generation.conversation import Conversation

    talk = Conversation(
        loaded,
        adapter,
        system=system,
        template=read_template(chat_template, loaded),
        how=how,
        max_tokens=max_tokens,
        stop=stop,
        context=context,
    )
    if talk.used_template.origin == "chatml" and talk.used_template.notice:
        note(talk.used_template.notice)
    person = sys.stdin.isatty()
    if person:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 (gives input() editing and a history, where there is one)
        click.echo(f"{loaded.name}{' with ' + lora if lora else ''}: {HELP}", err=True)
    while (line := _read(person)) is not None:
        if not line.strip():
            continue
        if line.startswith("/"):
            word, _, rest = line.strip().partition(" ")
            if word in ("/exit", "/quit", "/bye"):
                break
            if word == "/reset":
                talk.reset()
                note("conversation cleared")
            elif word == "/system":
                talk.reset(rest.strip())
                note("new conversation" + (", with this system message" if talk.system else ""))
            else:
                note(HELP)
            continue
        _answer(talk, line, person)


def _read(person: bool) -> str | None:
    """The next line, or None at its end. A line that ends with a backslash goes on in the next."""
    lines = []
    while True:
        if person:
            try:
                text = input("... " if lines else "> ")
            except EOFError:
                click.echo(err=True)
                return None
            except KeyboardInterrupt as stop:
                click.echo(err=True)
                if not lines or isinstance(stop, Terminated):
                    raise
                return ""
        else:
            text = sys.stdin.readline()
            if not text:
                return "\n".join(lines) or None
            text = text.rstrip("\n").lstrip("\ufeff")
        if not text.endswith("\\"):
            return "\n".join([*lines, text])
        lines.append(text[:-1])


def _answer(talk: Any, line: str, person: bool) -> None:
    forgotten = talk.forgotten
    pieces = talk.say(line)
    try:
        for piece in pieces:
            click.echo(piece, nl=False)
            sys.stdout.flush()
    except KeyboardInterrupt as stop:
        if not person or isinstance(stop, Terminated):
            raise
        pieces.close()
        click.echo(" [stopped]", err=True, nl=False)
    except UserError as error:
        if not person:
            raise
        note(str(error))
    click.echo()
    if talk.forgotten > forgotten:
        note("the context was full: the oldest turns were dropped (increase it with -c)")
    elif talk.last and talk.last.finish == "context":
        note("the context is full: the answer was cut off (increase it with -c)")
    if person:
        click.echo()
