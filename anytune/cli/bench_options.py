"""The flags of `anytune bench`: llama-bench's where it has them, which may be repeated or hold several numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from anytune.cli.options import DTYPES, MAX_BINDING, SIZE, TF32, force_option

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
            self.fail(f"{value!r} is not a number or a comma-separated list of numbers.", param, ctx)
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
        help="Device, as in the other commands. May be repeated.",
    ),
    click.option(
        "--train",
        "train",
        multiple=True,
        default=("1x512",),
        show_default=True,
        metavar="NxT",
        help="A LoRA training step on N examples of T tokens. May be repeated; 0 skips it.",
    ),
    click.option(
        "--train-file",
        metavar="DATA",
        help="LoRA training steps on this file, packed and masked as in `anytune train`: time per step, per epoch, "
        "and for all of --num-epochs. Other tests then run only if --train, -p or -n asks for them.",
    ),
    click.option(
        "--num-epochs",
        "epochs",
        type=click.IntRange(1, 1 << 20),
        default=1,
        show_default=True,
        metavar="N",
        help="Number of epochs for the total time of --train-file.",
    ),
    click.option(
        "-c",
        "--ctx-size",
        "context",
        type=click.IntRange(2, 1 << 20),
        default=512,
        show_default=True,
        metavar="N",
        help="Tokens of the longest example in --train-file.",
    ),
    click.option(
        "-b",
        "--batch-size",
        "batch",
        type=click.IntRange(2, 1 << 20),
        default=2048,
        show_default=True,
        metavar="N",
        help="With --train-file: tokens per optimizer step.",
    ),
    _many(
        "-p",
        "--n-prompt",
        "prompts",
        low=0,
        high=1 << 20,
        default="512",
        help="Tokens of a prompt, processed at once; 0 skips it. Default: 512.",
    ),
    _many(
        "-n",
        "--n-gen",
        "generated",
        low=0,
        high=1 << 20,
        default="128",
        help="Tokens generated one at a time; 0 skips it. Default: 128.",
    ),
    _many(
        "-d",
        "--n-depth",
        "depths",
        low=0,
        high=1 << 20,
        default=None,
        help="Tokens in the cache before a prompt or a generation. Default: 0.",
    ),
    _many(
        "-npl",
        "--parallel",
        "parallel",
        low=1,
        high=4096,
        default=None,
        help="Sequences generated at once; the rate is their total. Default: 1.",
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
        "--no-warmup", is_flag=True, help="Skip the warm-up round, in which code is compiled and files are read."
    ),
    _many("-t", "--threads", "threads", low=1, high=1024, default=None, help="CPU threads. Default: all cores."),
    click.option(
        "-ub",
        "--ubatch-size",
        "ubatch",
        type=click.IntRange(2, 1 << 20),
        metavar="N",
        help="Tokens of a training step computed at once. Default: all of them.",
    ),
    click.option(
        "--lora-rank",
        "rank",
        type=click.IntRange(1, 4096),
        default=16,
        show_default=True,
        metavar="R",
        help="Rank of the trained adapter.",
    ),
    click.option("--memory", type=SIZE, metavar="SIZE", help="Memory budget, as in training."),
    click.option(
        "--dtype",
        type=click.Choice(DTYPES),
        default="auto",
        show_default=True,
        help="Number format of a GPU's matrix products.",
    ),
    TF32,
    MAX_BINDING,
    click.option(
        "-ngl",
        "--gpu-layers",
        "--n-gpu-layers",
        "ngl",
        metavar="N",
        help="As in llama.cpp: 0 stays on the CPU, anything else lets --device auto use a GPU.",
    ),
    click.option(
        "-fa",
        "--flash-attn",
        "flash_attn",
        type=click.Choice(["on", "off", "auto", "0", "1"]),
        help="Accepted for compatibility with llama.cpp; attention never stores the whole T x T matrix.",
    ),
    click.option("--peer", type=click.Choice(["llama.cpp"]), help="Also measure llama.cpp (needs xllamacpp)."),
    click.option(
        "--timeout",
        type=click.FloatRange(1),
        metavar="S",
        help="Time limit of one measurement in seconds. Default: none.",
    ),
    click.option(
        "--print",
        "form",
        type=click.Choice(FORMATS),
        default="md",
        show_default=True,
        help="Output format: a Markdown table, CSV, or JSON with all rounds.",
    ),
    click.option("--json", "as_json", is_flag=True, help="The same as --print json."),
    click.option("-o", "--output", "save", metavar="FILE", help="Also write the JSON to FILE, after each measurement."),
    force_option,
    click.option("--compare", nargs=2, metavar="A B", help="Measure nothing; compare two saved files."),
)


def bench_options(command: Callable) -> Callable:
    for option in reversed(OPTIONS):
        command = option(command)
    return command
