"""anytune imatrix: which columns of the weights matter, measured on a text."""

from __future__ import annotations

from pathlib import Path

import click

from anytune.cli.command import Command
from anytune.cli.opening import load_model, model_path, read_text
from anytune.cli.options import force_option, forced, json_option, model_options
from anytune.cli.say import print_json
from anytune.files import check_output


@click.command(
    cls=Command,
    short_help="Measure the importance of weights, for quantize.",
    example="""
    anytune imatrix -m model-f16.gguf -f text.txt -o imatrix.gguf
    anytune quantize model-f16.gguf model-q4_k_m.gguf Q4_K_M --imatrix imatrix.gguf
""",
)
@model_options
@click.option("-f", "--file", required=True, metavar="FILE", help="A text like those that the model will see.")
@click.option("-o", "--output", default="imatrix.gguf", show_default=True, metavar="FILE", help="Where to write it.")
@click.option(
    "-c",
    "--ctx-size",
    "--context",
    "context",
    type=click.IntRange(2),
    metavar="N",
    help="Tokens of a window. Default: 512, or the model's context if that is less.",
)
@click.option(
    "--chunks", type=click.IntRange(1), metavar="N", help="Maximum number of windows. Default: all of the text."
)
@click.option(
    "-b", "--batch-size", "batch", type=click.IntRange(1), default=2048, show_default=True, help="Tokens run at once."
)
@force_option
@json_option
def imatrix(
    model: str, engine: dict, file: str, output: str, context: int | None, chunks: int | None, batch: int, as_json: bool
) -> None:
    """Run a text through the model and write the mean squares of each product's inputs.

    The file is compatible with llama.cpp's tools. A few hundred windows of ordinary text are enough.
    """
    from anytune.cli.progress import Progress
    from anytune.quantization.collect import collect
    from anytune.quantization.imatrix import write_imatrix

    check_output(output, forced(), [("the model", model_path(model)), ("the text", file)])
    text = read_text(file)
    loaded = load_model(model, engine)
    with Progress("imatrix", "tokens", quiet=as_json) as progress:
        found = collect(loaded, text, context=context, chunks=chunks, batch=batch, progress=progress.to)
    tokens, count = found.tokens, found.windows
    write_imatrix(output, found.sums, found.counts, [Path(file).name], count, tokens // count)
    facts = {"path": output, "matrices": len(found.sums), "tokens": tokens, "windows": count}
    if as_json:
        print_json(facts)
    else:
        click.echo(f"{len(found.sums)} matrices measured on {tokens} tokens in {count} windows")
        click.echo(output)
