"""anytune generate: text from one prompt, or from many at once."""

from __future__ import annotations

import sys
import time
from typing import Any

import click

from anytune.cli.common import (Command, json_option, load_adapter, load_model, lora_option, model_options, note,
                                print_json, read_text)
from anytune.cli.sampling import read_template, sampling_options
from anytune.errors import UserError


@click.command(cls=Command, example="""
    anytune generate -m model.gguf --lora adapter.gguf -p "Write to Anna that I am late." -n 64 --temp 0
    anytune generate -m model.gguf --raw -p "Once upon a time" --json
    cat question.txt | anytune generate -m model.gguf
""")
@model_options
@lora_option
@click.option("-p", "--prompt", "prompts", multiple=True, metavar="TEXT",
              help="The prompt; - reads it from stdin. Given several times, all are decoded together.")
@click.option("-f", "--file", "file", metavar="FILE", help="Read the prompt from a file.")
@click.option("-n", "--predict", "--n-predict", "max_tokens", type=click.IntRange(-1), default=256,
              show_default=True,
              help="New tokens at most; -1: until the model ends its turn or the context is full.")
@click.option(
    "--raw/--chat", "raw", default=None,
    help="Take the prompt as plain text to continue, or as a user's message.  [default: a message if the "
    "model has a chat template]")
@click.option("-sys", "--system", "--system-prompt", "system", metavar="TEXT", help="A system message.")
@sampling_options
@json_option
def generate(model: str, engine: dict, lora: str | None, prompts: tuple[str, ...], file: str | None,
             max_tokens: int, raw: bool | None, system: str | None, chat_template: str | None,
             stop: tuple[str, ...], context: int | None, sampling: dict[str, Any], as_json: bool) -> None:
    """Continue a prompt, or answer it.

    With a chat template (the GGUF's, the adapter's, or --chat-template) the prompt is a user's message and
    what is printed is the answer; --raw continues it as plain text instead, which is the default with an
    adapter that was trained on plain text. Text is streamed as it comes.
    """
    from anytune.sampling import Sampling

    how = Sampling(**sampling)
    texts = _prompts(prompts, file)
    loaded = load_model(model, engine)
    adapter = load_adapter(lora, loaded)
    from anytune.generate import complete, continues_text, stream, template_of

    options: dict[str, Any] = dict(how=how, max_tokens=max_tokens, stop=stop, context=context, system=system,
                                   chat=None if raw is None else not raw,
                                   template=read_template(chat_template, loaded))
    used = template_of(loaded, adapter, options["template"])
    if raw is False and used.origin == "chatml" and used.notice:
        note(used.notice)
    own = loaded.template.origin != "chatml"
    if raw is None and chat_template is None and own and continues_text(adapter):
        note("the adapter was trained on plain text: it continues the prompt as it stands (see --chat)")
    start = time.perf_counter()
    if len(texts) == 1 and not as_json:
        for piece in stream(loaded, texts[0], adapter, **options):
            click.echo(piece, nl=False)
            sys.stdout.flush()
        click.echo()
        return
    replies = complete(loaded, texts, adapter, **options)
    seconds = time.perf_counter() - start
    if as_json:
        results = [{
            "prompt": text, "text": reply.text, "finish": reply.finish, "prompt_tokens": len(reply.prompt),
            "tokens": len(reply.ids), "ids": reply.ids
        } for text, reply in zip(texts, replies, strict=True)]
        tokens = sum(len(reply.ids) for reply in replies)
        print_json(
            {"results": results, "seconds": round(seconds, 3), "tokens_per_s": round(tokens / seconds, 2)})
        return
    for number, (text, reply) in enumerate(zip(texts, replies, strict=True)):
        click.echo(("\n" if number else "") + "--- " + text.partition("\n")[0])
        click.echo(reply.text)


def _text(path: str) -> str:
    """A prompt as it is typed: lines end with "\\n"."""
    return read_text(path, "prompt").replace("\r\n", "\n")


def _prompts(given: tuple[str, ...], file: str | None) -> list[str]:
    texts = [_text("-") if text == "-" else text for text in given]
    if file is not None:
        texts.append(_text(file))
    if not texts and not sys.stdin.isatty():
        texts.append(_text("-").rstrip("\n"))
    if not texts or not any(texts):
        raise UserError("There is no prompt: give one with -p, -f FILE or on stdin.")
    return texts
