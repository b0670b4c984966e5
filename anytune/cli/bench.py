"""anytune bench: how fast, and in how much memory."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from anytune.cli.common import (
    SIZE,
    Command,
    data_files,
    existing_file,
    force_option,
    forced,
    layers_device,
    model_path,
    note,
    print_json,
)
from anytune.errors import UserError
from anytune.files import check_output

FORMATS = ("md", "csv", "json")


class _Numbers(click.ParamType):
    """Whole numbers with commas between them, as in llama-bench."""

    name = "numbers"

    def __init__(self, low: int, high: int):
        self.low, self.high = low, high

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        try:
            found = tuple(map(int, str(value).split(",")))
        except ValueError:
            self.fail(f"{value!r} is not a number, or several with commas between them.", param, ctx)
        if any(not self.low <= n <= self.high for n in found):
            self.fail(f"{value!r} is not between {self.low} and {self.high}.", param, ctx)
        return found


def _many(*flags: str, low: int, high: int, default: str | None, help: str) -> Callable:
    return click.option(
        *flags, multiple=True, type=_Numbers(low, high), default=(default,) if default else (), metavar="N", help=help
    )


class _Bench(Command):
    """Knows llama-bench's -o FORMAT, which was also this command's: elsewhere -o is a file."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        args = list(args)
        for at, arg in enumerate(args[:-1]):
            if arg in ("-o", "--output") and args[at + 1] in FORMATS:
                note(f"-o {args[at + 1]} is now --print {args[at + 1]}")
                args[at] = "--print"
        return super().parse_args(ctx, args)


@click.command(
    cls=_Bench,
    renamed={"--save": "-o"},
    short_help="Measure training, prompts and generation: speed and memory.",
    example="""
    anytune bench -m model.gguf
    anytune bench -m a.gguf -m b.gguf --device auto --device numpy -p 512 -n 128 -r 5 --train 1x512 -o here.json
    anytune bench -m model.gguf -p 0 -n 64 -npl 1,4 --train 0 --peer llama.cpp
    anytune bench -m model.gguf --train-file chats.jsonl --num-epochs 8 -c 128 -ub 128 -b 128
    anytune bench --compare here.json there.json
""",
)
@click.option(
    "-m",
    "--model",
    "models",
    multiple=True,
    metavar="GGUF",
    help="A model: a GGUF file, or a name of `anytune models`. May be repeated.",
)
@click.option(
    "--device",
    "devices",
    multiple=True,
    default=("auto",),
    show_default=True,
    metavar="NAME",
    help="What computes, as in the other commands. May be repeated.",
)
@click.option(
    "--train",
    "train",
    multiple=True,
    default=("1x512",),
    show_default=True,
    metavar="NxT",
    help="A step of LoRA training on N examples of T tokens. May be repeated; 0 leaves it out.",
)
@click.option(
    "--train-file",
    metavar="DATA",
    help="Steps of LoRA training on this file, packed and masked as `anytune train` does: time a step, an epoch, and "
    "all of --num-epochs. Without --train, -p and -n nothing else is measured.",
)
@click.option(
    "--num-epochs",
    "epochs",
    type=click.IntRange(1, 1 << 20),
    default=1,
    show_default=True,
    metavar="N",
    help="Epochs that the whole time of --train-file is given for.",
)
@click.option(
    "-c",
    "--ctx-size",
    "context",
    type=click.IntRange(2, 1 << 20),
    default=512,
    show_default=True,
    metavar="N",
    help="Tokens of the longest example of --train-file.",
)
@click.option(
    "-b",
    "--batch-size",
    "batch",
    type=click.IntRange(2, 1 << 20),
    default=2048,
    show_default=True,
    metavar="N",
    help="With --train-file: tokens of an optimizer step.",
)
@_many(
    "-p",
    "--n-prompt",
    "prompts",
    low=0,
    high=1 << 20,
    default="512",
    help="Tokens of a prompt, all read at once; 0 leaves it out. Default: 512.",
)
@_many(
    "-n",
    "--n-gen",
    "generated",
    low=0,
    high=1 << 20,
    default="128",
    help="Tokens that are generated one after the other; 0 leaves it out. Default: 128.",
)
@_many(
    "-d",
    "--n-depth",
    "depths",
    low=0,
    high=1 << 20,
    default=None,
    help="Tokens that are in the cache before a prompt or a generation. Default: 0.",
)
@_many(
    "-npl",
    "--parallel",
    "parallel",
    low=1,
    high=4096,
    default=None,
    help="Sequences that are generated at once; the rate is that of all of them. Default: 1.",
)
@click.option(
    "-r",
    "--repetitions",
    "repeats",
    type=click.IntRange(1, 1 << 20),
    default=5,
    show_default=True,
    metavar="N",
    help="Rounds of each measurement.",
)
@click.option(
    "--no-warmup", is_flag=True, help="Count the first round too, in which code is compiled and files are read."
)
@_many(
    "-t", "--threads", "threads", low=1, high=1024, default=None, help="CPU threads. Default: the cores that there are."
)
@click.option(
    "-ub",
    "--ubatch-size",
    "ubatch",
    type=click.IntRange(2, 1 << 20),
    metavar="N",
    help="Tokens of a training step that are computed at once. Default: all of the step.",
)
@click.option(
    "--lora-rank",
    "rank",
    type=click.IntRange(1, 4096),
    default=16,
    show_default=True,
    metavar="R",
    help="Rank of the adapter in training.",
)
@click.option("--memory", type=SIZE, metavar="SIZE", help="Memory to stay within, as in training.")
@click.option(
    "--dtype",
    type=click.Choice(["auto", "bf16", "fp16", "f32", "fp8"]),
    default="auto",
    show_default=True,
    help="Number format of a GPU's matrix products.",
)
@click.option("--tf32", is_flag=True, help="Let float32 products run on tensor cores, with 10 bits of mantissa.")
@click.option(
    "--max-binding",
    type=SIZE,
    metavar="SIZE",
    help="With webgpu: a lower limit than the device's for what a kernel sees at once, such as 128MiB.",
)
@click.option(
    "-ngl",
    "--gpu-layers",
    "--n-gpu-layers",
    "ngl",
    metavar="N",
    help="As in llama.cpp: 0 keeps to the CPU, anything else lets --device auto take a GPU.",
)
@click.option(
    "-fa",
    "--flash-attn",
    "flash_attn",
    type=click.Choice(["on", "off", "auto", "0", "1"]),
    help="Accepted as llama.cpp does; attention here never stores the whole T x T matrix.",
)
@click.option("--peer", type=click.Choice(["llama.cpp"]), help="Measure llama.cpp beside it (needs xllamacpp).")
@click.option(
    "--timeout", type=click.FloatRange(1), metavar="S", help="Seconds that one measurement may take. Default: any."
)
@click.option(
    "--print",
    "form",
    type=click.Choice(FORMATS),
    default="md",
    show_default=True,
    help="What is printed: a Markdown table, CSV, or JSON with all rounds.",
)
@click.option("--json", "as_json", is_flag=True, help="The same as --print json.")
@click.option(
    "-o",
    "--output",
    "save",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="Also write the JSON to FILE, after each measurement.",
)
@force_option
@click.option("--compare", nargs=2, metavar="A B", help="Measure nothing: set two saved files side by side.")
def bench(
    models: tuple[str, ...],
    devices: tuple[str, ...],
    train: tuple[str, ...],
    prompts: tuple,
    generated: tuple,
    depths: tuple,
    parallel: tuple,
    repeats: int,
    no_warmup: bool,
    threads: tuple,
    peer: str | None,
    form: str,
    as_json: bool,
    save: str | None,
    compare: tuple[str, str] | None,
    ngl: str | None,
    flash_attn: str | None,
    **more: Any,
) -> int:
    """Measure training steps, prompts and generation of every -m on every --device: tokens a second (the median of
    -r rounds, with the smallest and the largest), and the most memory taken, each in a process of its own.

    pp512 is a prompt of 512 tokens, tg128 a generation of 128, as in llama-bench; `@ d` says how many tokens came
    before, `x4` that four sequences are generated at once. Ctrl-C ends it and prints what was measured so far. The
    JSON names no user, host or folder. Exit code 1 if a measurement failed.
    """
    form = "json" if as_json else form
    if compare:
        return _compare(*compare, form)
    from anytune.benchmark import document as documents
    from anytune.benchmark import cases, run
    from anytune.benchmark.table import csv_text, markdown
    from anytune.cli.progress import Progress

    if not models:
        raise UserError("There is no model to measure: name one with -m.")
    paths = list(dict.fromkeys(model_path(name) for name in models))
    _different(paths)
    asked = _asked(train, prompts, generated, depths, parallel, more)
    if ngl is not None:
        devices = tuple(layers_device(ngl, device) for device in devices)
    cells = cases.cells(paths, _known(devices), _flat(threads), asked, peer is not None)
    settings = cases.Settings(repeats=repeats, warmup=int(not no_warmup), **more)
    place = Path(save).expanduser() if save else None
    check_output(place, forced(), [*(("a model", path) for path in paths), ("the data", more["train_file"])])
    document = documents.begin(_command(), settings, paths)

    def keep(row: dict[str, Any]) -> None:
        documents.add(document, row, *paths)
        if place:
            documents.save(document, place)

    with Progress("bench", "rounds") as progress, _termination_is_ctrl_c():
        document["interrupted"] = not run.measure(cells, settings, keep, progress.to)
    if place:
        documents.save(document, place)
    if form == "json":
        print_json(document)
    else:
        click.echo(csv_text(document) if form == "csv" else markdown(document))
    if document["interrupted"]:
        note("interrupted" + (f"; {save} has what was measured so far" if save else ""))
        return 130
    return int(any(row["problem"] for row in document["results"]))


@contextlib.contextmanager
def _termination_is_ctrl_c() -> Iterator[None]:
    """A script's `timeout` ends it as a person does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _compare(a: str, b: str, form: str) -> int:
    from anytune.benchmark import compare as comparing
    from anytune.benchmark.document import load

    if form == "csv":
        raise UserError("--compare prints a table or JSON: leave out --print csv.")
    found = comparing.compare(*(load(existing_file(path, "result")) for path in (a, b)))
    if form == "json":
        print_json(found)
    else:
        click.echo(comparing.report(found))
    return 0


def _asked(train: tuple, prompts: tuple, generated: tuple, depths: tuple, parallel: tuple, more: dict) -> list:
    """The tests; with --train-file it is measured first, and the others only where they are named."""
    from anytune.benchmark import cases

    source, context = click.core.ParameterSource.COMMANDLINE, click.get_current_context()
    named = any(context.get_parameter_source(name) == source for name in ("train", "prompts", "generated"))
    found = [] if more["train_file"] is None else [cases.Test("file", more["context"])]
    if more["train_file"] is not None:
        more["train_file"], *others = data_files([more["train_file"]])
        if others:
            raise UserError("--train-file takes one file: name it, as in hf:OWNER/DATASET:FILE.")
    if named or not found:
        found += cases.tests(train, *map(_flat, (prompts, generated, depths, parallel)))
    return found


def _flat(values: tuple[tuple[int, ...], ...]) -> tuple[int, ...]:
    return tuple(n for some in values for n in some)


def _known(devices: tuple[str, ...]) -> tuple[str, ...]:
    """The devices' names; a UserError for one that no machine has."""
    from anytune.engine.devices import DEVICES

    for name in devices:
        if name.partition(":")[0] not in DEVICES:
            raise UserError(f"no device is called {name!r}: --device takes {', '.join(DEVICES)}")
    return devices


def _different(paths: list[Path]) -> None:
    names = [path.name for path in paths]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"Two models are called {name}, and results go by the files' names: rename one.")


def _command() -> list[str]:
    """This command line as another person would give it: only what was given, files without their folders."""
    context, words = click.get_current_context(), ["anytune", "bench"]
    for param in context.command.params:
        if context.get_parameter_source(param.name) is not click.core.ParameterSource.COMMANDLINE:
            continue
        value = context.params[param.name]
        if param.is_flag:
            words.append(param.opts[0])
            continue
        for one in value if param.multiple else [value]:
            shown = ",".join(map(str, one)) if isinstance(one, tuple) else str(one)
            words += [
                param.opts[0],
                os.path.basename(shown) if param.name in ("models", "save", "train_file") else shown,
            ]
    return words
