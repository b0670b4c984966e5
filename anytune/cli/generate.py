"""anytune generate: text from one prompt, or from many at once."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from anytune.cli import predictions
from anytune.cli.command import Command
from anytune.cli.opening import load_adapter, load_model, model_path, read_text
from anytune.cli.options import force_option, json_option, lora_option, model_options
from anytune.cli.sampling import read_template, sampling_options
from anytune.cli.say import note, print_json
from anytune.errors import UserError

if TYPE_CHECKING:
    from anytune.benchmark.generation import GenerationStats
    from anytune.generation.generate import Reply


@click.command(
    cls=Command,
    example="""
    anytune generate -m model.gguf --lora adapter.gguf -p "Write to Anna that I am late." -n 64 --temp 0
    anytune generate -m model.gguf --raw -p "Once upon a time" --json
    cat question.txt | anytune generate -m model.gguf
    anytune generate -m model.gguf --lora adapter.gguf --prompts questions.txt -o predictions.jsonl --temp 0
    anytune generate -m model.gguf -p "Tell me a joke about cats" --temp 0 --bench 5
""",
)
@model_options
@lora_option
@click.option(
    "-p",
    "--prompt",
    "prompts",
    multiple=True,
    metavar="TEXT",
    help="The prompt; - reads it from stdin. May be repeated; all are decoded together.",
)
@click.option("-f", "--file", "file", metavar="FILE", help="Read one prompt from FILE, the whole file.")
@click.option(
    "--prompts",
    "prompt_file",
    metavar="FILE",
    help="Read many prompts: one per line of a text file, or per record of a JSONL file "
    "(a string, or an object with prompt, question or messages).",
)
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    help="Write the answers to FILE: .jsonl with one object per prompt, or .txt with one line per answer.",
)
@click.option(
    "-n",
    "--predict",
    "--n-predict",
    "max_tokens",
    type=click.IntRange(-1),
    default=256,
    show_default=True,
    help="Maximum new tokens; -1: until the model ends its turn or the context is full.",
)
@click.option(
    "--raw/--chat",
    "raw",
    default=None,
    help="Treat the prompt as plain text to continue, or as a user's message.  [default: a message if the model "
    "has a chat template]",
)
@click.option("-sys", "--system", "--system-prompt", "system", metavar="TEXT", help="A system message.")
@click.option(
    "-st",
    "--single-turn",
    is_flag=True,
    help="Accepted for compatibility with llama.cpp: generate always answers once.",
)
@click.option("--stats", is_flag=True, help="Report time to first token and peak, mean and lowest tokens per second.")
@click.option(
    "--bench",
    "bench",
    type=click.IntRange(1, 1000),
    metavar="N",
    help="Answer each prompt N times and print only the figures of --stats, run by run.",
)
@click.option("-v", "--verbose", is_flag=True, help="The same as --stats.")
@sampling_options
@force_option
@json_option
def generate(
    model: str,
    engine: dict,
    lora: str | None,
    prompts: tuple[str, ...],
    file: str | None,
    prompt_file: str | None,
    output: str | None,
    max_tokens: int,
    raw: bool | None,
    system: str | None,
    single_turn: bool,
    stats: bool,
    bench: int | None,
    verbose: bool,
    chat_template: str | None,
    stop: tuple[str, ...],
    context: int | None,
    sampling: dict[str, Any],
    as_json: bool,
) -> None:
    """Continue a prompt, or answer it.

    With a chat template (the GGUF's, the adapter's, or --chat-template), the prompt is a user's message and the answer
    is printed; --raw continues the prompt as plain text instead, the default for an adapter trained on plain text.
    Output is streamed.
    """
    from anytune.generation.sampling import Sampling

    how = Sampling(**sampling)
    stats = stats or verbose
    if prompt_file is not None and (prompts or file is not None):
        raise UserError("--prompts reads many prompts, -p and -f give single ones: use one or the other.")
    if bench is not None and (prompt_file is not None or output is not None):
        raise UserError("--bench only measures: omit --prompts and -o.")
    many = predictions.read(prompt_file) if prompt_file is not None else []
    texts = [] if many else _prompts(prompts, file)
    if output is not None:
        predictions.check_output(output, model_path(model), lora, prompt_file or file, chat_template)
    loaded = load_model(model, engine)
    adapter = load_adapter(lora, loaded)
    from anytune.generation.generate import complete, stream
    from anytune.generation.prompts import continues_text, template_of

    options: dict[str, Any] = dict(
        how=how,
        max_tokens=max_tokens,
        stop=stop,
        context=context,
        system=system,
        chat=None if raw is None else not raw,
        template=read_template(chat_template, loaded),
    )
    used = template_of(loaded, adapter, options["template"])
    if raw is False and used.origin == "chatml" and used.notice:
        note(used.notice)
    own = loaded.template.origin != "chatml"
    if raw is None and chat_template is None and own and continues_text(adapter):
        note("the adapter was trained on plain text: it continues the prompt verbatim (see --chat)")
    if many:
        texts = [prompt.shown for prompt in many]
        replies = predictions.answer_all(loaded, adapter, many, str(prompt_file), options)
    elif bench is not None:
        return _bench(bench, [complete(loaded, texts, adapter, **options) for _ in range(bench + 1)], as_json)
    elif len(texts) == 1 and not as_json and output is None:
        replies = []
        for piece in stream(loaded, texts[0], adapter, replies=replies, **options):
            click.echo(piece, nl=False)
            sys.stdout.flush()
        click.echo()
    else:
        replies = complete(loaded, texts, adapter, **options)
    if output is not None:
        predictions.write(output, texts, replies)
    if as_json:
        print_json(_as_json(texts, replies, stats))
    elif output is None and (many or len(texts) > 1):
        for number, (text, reply) in enumerate(zip(texts, replies, strict=True)):
            click.echo(("\n" if number else "") + f"--- {text.splitlines()[0] if text.strip() else ''}")
            click.echo(reply.text)
    if stats and not as_json:
        for reply in replies:
            note(_stats(reply).text())


def _stats(reply: Reply) -> GenerationStats:
    from anytune.benchmark.generation import generation_stats

    return generation_stats(len(reply.prompt), reply.started, reply.times)


def _as_json(texts: list[str], replies: list[Reply], stats: bool) -> dict[str, Any]:
    results = [
        {
            "prompt": text,
            "text": reply.text,
            "finish": reply.finish,
            "prompt_tokens": len(reply.prompt),
            "tokens": len(reply.ids),
            "ids": reply.ids,
            **({"stats": _stats(reply).as_dict()} if stats else {}),
        }
        for text, reply in zip(texts, replies, strict=True)
    ]
    seconds = max((reply.times[-1] for reply in replies if reply.times), default=0.0) - min(
        (reply.started for reply in replies), default=0.0
    )
    tokens = sum(len(reply.ids) for reply in replies)
    return {"results": results, "seconds": round(seconds, 3), "tokens_per_s": round(tokens / max(seconds, 1e-9), 2)}


def _bench(runs: int, replies: list[list[Reply]], as_json: bool) -> None:
    """Print the figures of each run; the first, in which code is compiled and files are read, does not count."""
    from anytune.benchmark.generation import markdown, summary

    found = [_stats(reply) for some in replies[1:] for reply in some]
    if as_json:
        print_json({"runs": [run.as_dict() for run in found], "summary": summary(found), "text": replies[-1][0].text})
        return
    click.echo(replies[-1][0].text)
    click.echo(
        f"\n{markdown(found)}\n\nRates are tokens/s after the first token; peak and lowest over 8 consecutive "
        "tokens. A warm-up run was not counted."
    )


def _text(path: str) -> str:
    """A prompt as it is typed: lines end with "\\n"."""
    return read_text(path, "prompt").replace("\r\n", "\n")


def _prompts(given: tuple[str, ...], file: str | None) -> list[str]:
    texts = [_text("-") if text == "-" else text for text in given]
    if file is not None:
        texts.append(_text(file))
        if (lines := sum(map(bool, map(str.strip, texts[-1].splitlines())))) > 1:
            note(f"{file} is one prompt of {lines} lines; --prompts {file} answers each line")
    if not texts and not sys.stdin.isatty():
        texts.append(_text("-").rstrip("\n"))
    if not any(texts):
        raise UserError(
            f"{f'{file} is empty' if file else 'There is no prompt'}: give one with -p, -f FILE or on stdin."
        )
    return texts
