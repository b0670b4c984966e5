"""anytune bench: how fast, and in how much memory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from anytune.cli.bench_options import FORMATS, bench_options
from anytune.cli.command import Command
from anytune.cli.opening import data_files, existing_file, layers_device, model_path
from anytune.cli.options import forced
from anytune.cli.say import note, print_json
from anytune.errors import UserError
from anytune.files import check_output


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
@bench_options
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
    """Measure training steps, prompts and generation of every -m on every --device: tokens/s (the median of -r rounds,
    with minimum and maximum) and peak memory, each in its own process.

    pp512 is a prompt of 512 tokens, tg128 a generation of 128, as in llama-bench; `@ d` gives the tokens already in the
    cache, `x4` means four sequences at once. Ctrl-C stops and prints the results so far. The JSON names no user, host
    or folder. The exit code is 1 if a measurement failed.
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

    with Progress("bench", "rounds") as progress:
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


def _compare(a: str, b: str, form: str) -> int:
    from anytune.benchmark import compare as comparing
    from anytune.benchmark.document import load

    if form == "csv":
        raise UserError("--compare prints a table or JSON: omit --print csv.")
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
    from anytune.engine.devices import DEVICES, unknown

    for name in devices:
        if name.partition(":")[0] not in DEVICES:
            raise unknown(name, DEVICES)
    return devices


def _different(paths: list[Path]) -> None:
    names = [path.name for path in paths]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"Two models are called {name}, but results are identified by file name: rename one.")


def _command() -> list[str]:
    """This command line as another person would give it: only what was given, files without their folders."""
    context, words = click.get_current_context(), ["anytune", "bench"]
    for param in context.command.params:
        given = context.get_parameter_source(param.name) is click.core.ParameterSource.COMMANDLINE
        if not given or not param.expose_value:
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
