"""anytune quantize search: a type for every tensor, within a budget."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import Any

import click

from anytune.cli.command import Command
from anytune.cli.opening import load_model, model_path, read_text
from anytune.cli.options import force_option, forced, json_option, model_options
from anytune.cli.say import note, print_json
from anytune.errors import UserError
from anytune.files import check_output


@click.command(
    "search",
    cls=Command,
    short_help="Find the best type for each tensor.",
    example="""
    anytune quantize search -m model-f16.gguf --budget 4.5bpw -f text.txt -o model-mixed.gguf
    anytune quantize search -m model-f16.gguf --budget 300MiB -f text.txt --types Q4_K,Q5_K,Q6_K -o small.gguf
    anytune quantize search -m model-f16.gguf --budget 4.25bpw -f text.txt --json
""",
)
@model_options
@click.option(
    "--budget",
    required=True,
    metavar="AMOUNT",
    help="Budget: a file size such as 300MiB, bits per weight such as 4.0bpw, or cycles of the hardware cores per "
    "step such as 90Mcycles.",
)
@click.option("-f", "--file", required=True, metavar="FILE", help="A text like those that the model will see.")
@click.option("-o", "--output", metavar="GGUF", help="The file to write. Without it the search only reports.")
@force_option
@click.option(
    "--types",
    metavar="TYPE,…",
    help="Types to choose from, besides each tensor's own.  [default: all from Q2_K to Q8_0 except ternary ones]",
)
@click.option(
    "--imatrix",
    metavar="FILE",
    help="Importance matrix from `anytune imatrix`. Default: measured on the text's other windows.",
)
@click.option(
    "-c",
    "--ctx-size",
    "--context",
    "context",
    type=click.IntRange(2),
    metavar="N",
    help="Tokens of a window. Default: 256, or the model's context if that is less.",
)
@click.option(
    "--chunks",
    type=click.IntRange(1),
    metavar="N",
    help="Windows to predict on, and the same number to check on. Default: 4.",
)
@click.option(
    "--draws",
    type=click.IntRange(1, 1024),
    default=8,
    show_default=True,
    metavar="N",
    help="Labels sampled per token: more reduce the noise of each tensor's costs.",
)
@click.option(
    "--tokens",
    type=click.IntRange(1, 1 << 20),
    default=128,
    show_default=True,
    metavar="N",
    help="Tokens of the step whose cycles are the budget.",
)
@click.option("-s", "--seed", type=int, default=42, show_default=True, help="Seed of the sampled labels.")
@click.option(
    "--allow-requantize",
    "requantize",
    is_flag=True,
    help="Allow a file that is already quantized; rounding twice costs accuracy.",
)
@json_option
def search(
    model: str,
    engine: dict,
    budget: str,
    file: str,
    output: str | None,
    types: str | None,
    imatrix: str | None,
    context: int | None,
    chunks: int | None,
    draws: int,
    tokens: int,
    seed: int,
    requantize: bool,
    as_json: bool,
) -> None:
    """Measure on a text what each type costs in each tensor, and write the cheapest mix within a budget.

    Costs are KL divergences to the given file, so use one in F16, BF16 or F32. The result is measured as a whole, and
    compared with models of a single type.
    """
    from anytune.fpga.formats import FORMATS
    from anytune.fpga.plan import price
    from anytune.quantization.search.budget import bytes_of, parse
    from anytune.quantization.search.report import lines
    from anytune.quantization.search.run import TYPES, search as run

    cycles = parse(budget).unit == "cycles"
    kinds = (
        [name.strip() for name in types.split(",") if name.strip()]
        if types is not None
        else (FORMATS if cycles else TYPES)
    )
    if not kinds:
        raise UserError("--types is empty: give some, such as Q4_K,Q6_K.")
    if output is not None:
        read = [("the model", model_path(model)), ("the text", file), ("the importance file", imatrix)]
        check_output(output, forced(), read)
    text = read_text(file)
    loaded = load_model(model, engine)
    found = run(
        loaded,
        text,
        budget,
        target=output,
        types=kinds,
        imatrix=imatrix,
        context=context,
        chunks=chunks,
        draws=draws,
        seed=seed,
        requantize=requantize,
        threads=engine["threads"],
        say=Stages(as_json),
        price=partial(price, tokens=tokens, tied=loaded.config.tied) if cycles else bytes_of,
    )
    if as_json:
        print_json(found)
        return
    _remarks(found)
    click.echo("\n".join(lines(found)))
    if output is not None:
        click.echo(output)


def _remarks(found: dict[str, Any]) -> None:
    ratio = found["ratio"]
    if ratio is not None and not 0.8 <= ratio <= 1.25:
        note(
            f"the prediction is {ratio:.2f} times what was measured: the mix may not be the best; more --chunks and "
            "--draws help"
        )
    if "kl_held_out" not in found:
        note("the text has no window left to check on: give a longer one")


class Stages:
    """A line of progress for each stage of a search."""

    def __init__(self, quiet: bool):
        self._quiet, self._stage, self._line = quiet, "", None

    def __call__(self, stage: str, done: int, total: int) -> None:
        from anytune.cli.progress import Progress

        if stage != self._stage:
            self._stage = stage
            unit = {
                "importance": "tokens",
                "costs": "layers",
                "whole models": "models",
                "unrounded": "steps",
                "lowered": "steps",
            }.get(stage, "weights")
            self._line = Progress(stage, unit, self._quiet)
        with self._line if done >= total else contextlib.nullcontext():
            self._line.to(done, total)
