"""The flags of `anytune bench`: llama-bench's where it has them, which may be repeated or hold several numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from anytune.cli.options import DTYPES, SIZE, force_option

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


OPTIONS = (
    click.option(
        "-m",
        "--model",
        "models",
        multiple=True,
        metavar="GGUF",
        help="A model: a GGUF file, or a name of `anytune models`. May be repeated.",
    ),
    click.option(
        "--device",
        "devices",
        multiple=True,
        default=("auto",),
        show_default=True,
        metavar="NAME",
        help="What computes, as in the other commands. May be repeated.",
    ),
    click.option(
        "--train",
        "train",
        multiple=True,
        default=("1x512",),
        show_default=True,
        metavar="NxT",
        help="A step of LoRA training on N examples of T tokens. May be repeated; 0 leaves it out.",
    ),
    click.option(
        "--train-file",
        metavar="DATA",
        help="Steps of LoRA training on this file, packed and masked as `anytune train` does: time a step, an epoch, "
        "and all of --num-epochs. Without --train, -p and -n nothing else is measured.",
    ),
    click.option(
        "--num-epochs",
        "epochs",
        type=click.IntRange(1, 1 << 20),
        default=1,
        show_default=True,
        metavar="N",
        help="Epochs that the whole time of --train-file is given for.",
    ),
    click.option(
        "-c",
        "--ctx-size",
        "context",
        type=click.IntRange(2, 1 << 20),
        default=512,
        show_default=True,
        metavar="N",
        help="Tokens of the longest example of --train-file.",
    ),
    click.option(
        "-b",
        "--batch-size",
        "batch",
        type=click.IntRange(2, 1 << 20),
        default=2048,
        show_default=True,
        metavar="N",
        help="With --train-file: tokens of an optimizer step.",
    ),
    _many(
        "-p",
        "--n-prompt",
        "prompts",
        low=0,
        high=1 << 20,
        default="512",
        help="Tokens of a prompt, all read at once; 0 leaves it out. Default: 512.",
    ),
    _many(
        "-n",
        "--n-gen",
        "generated",
        low=0,
        high=1 << 20,
        default="128",
        help="Tokens that are generated one after the other; 0 leaves it out. Default: 128.",
    ),
    _many(
        "-d",
        "--n-depth",
        "depths",
        low=0,
        high=1 << 20,
        default=None,
        help="Tokens that are in the cache before a prompt or a generation. Default: 0.",
    ),
    _many(
        "-npl",
        "--parallel",
        "parallel",
        low=1,
        high=4096,
        default=None,
        help="Sequences that are generated at once; the rate is that of all of them. Default: 1.",
    ),
    click.option(
        "-r",
        "--repetitions",
        "repeats",
        type=click.IntRange(1, 1 << 20),
        default=5,
        show_default=True,
        metavar="N",
        help="Rounds of each measurement.",
    ),
    click.option(
        "--no-warmup", is_flag=True, help="Count the first round too, in which code is compiled and files are read."
    ),
    _many(
        "-t",
        "--threads",
        "threads",
        low=1,
        high=1024,
        default=None,
        help="CPU threads. Default: the cores that there are.",
    ),
    click.option(
        "-ub",
        "--ubatch-size",
        "ubatch",
        type=click.IntRange(2, 1 << 20),
        metavar="N",
        help="Tokens of a training step that are computed at once. Default: all of the step.",
    ),
    click.option(
        "--lora-rank",
        "rank",
        type=click.IntRange(1, 4096),
        default=16,
        show_default=True,
        metavar="R",
        help="Rank of the adapter in training.",
    ),
    click.option("--memory", type=SIZE, metavar="SIZE", help="Memory to stay within, as in training."),
    click.option(
        "--dtype",
        type=click.Choice(DTYPES),
        default="auto",
        show_default=True,
        help="Number format of a GPU's matrix products.",
    ),
    click.option("--tf32", is_flag=True, help="Let float32 products run on tensor cores, with 10 bits of mantissa."),
    click.option(
        "--max-binding",
        type=SIZE,
        metavar="SIZE",
        help="With webgpu: a lower limit than the device's for what a kernel sees at once, such as 128MiB.",
    ),
    click.option(
        "-ngl",
        "--gpu-layers",
        "--n-gpu-layers",
        "ngl",
        metavar="N",
        help="As in llama.cpp: 0 keeps to the CPU, anything else lets --device auto take a GPU.",
    ),
    click.option(
        "-fa",
        "--flash-attn",
        "flash_attn",
        type=click.Choice(["on", "off", "auto", "0", "1"]),
        help="Accepted as llama.cpp does; attention here never stores the whole T x T matrix.",
    ),
    click.option("--peer", type=click.Choice(["llama.cpp"]), help="Measure llama.cpp beside it (needs xllamacpp)."),
    click.option(
        "--timeout", type=click.FloatRange(1), metavar="S", help="Seconds that one measurement may take. Default: any."
    ),
    click.option(
        "--print",
        "form",
        type=click.Choice(FORMATS),
        default="md",
        show_default=True,
        help="What is printed: a Markdown table, CSV, or JSON with all rounds.",
    ),
    click.option("--json", "as_json", is_flag=True, help="The same as --print json."),
    click.option("-o", "--output", "save", metavar="FILE", help="Also write the JSON to FILE, after each measurement."),
    force_option,
    click.option("--compare", nargs=2, metavar="A B", help="Measure nothing: set two saved files side by side."),
)


def bench_options(command: Callable) -> Callable:
    for option in reversed(OPTIONS):
        command = option(command)
    return command
