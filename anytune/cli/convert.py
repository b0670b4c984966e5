"""anytune convert: a Hugging Face folder as a GGUF file."""

from __future__ import annotations

from pathlib import Path

import click

from anytune.cli.command import Command
from anytune.cli.options import force_option, forced, json_option
from anytune.cli.say import note, print_json
from anytune.errors import UserError
from anytune.files import check_output


@click.command(
    cls=Command,
    short_help="Convert a Hugging Face folder to a GGUF file.",
    example="""
    anytune convert ./Qwen3-1.7B -o qwen3-1.7b.gguf
    anytune convert ./Qwen3-1.7B -o qwen3-1.7b-q4_k_m.gguf Q4_K_M
""",
)
@click.argument("folder", metavar="HF_FOLDER")
@click.argument("kind", required=False, metavar="[TYPE]")
@click.option("-o", "--output", required=True, metavar="FILE", help="The GGUF file to write.")
@click.option(
    "--pre", metavar="NAME", help="llama.cpp's name of the pre-tokenizer, if tokenizer.json does not identify it."
)
@click.option("--name", metavar="TEXT", help="The model's name in the file.  [default: the folder's]")
@force_option
@json_option
def convert(folder: str, kind: str | None, output: str, pre: str | None, name: str | None, as_json: bool) -> None:
    """Write the model in HF_FOLDER (config.json, safetensors, tokenizer) to a GGUF file.

    Metadata, tokenizer and chat template are those that llama.cpp's converter writes. Without TYPE the weights keep
    their own type (BF16, F16 or F32), bit-exact. With another TYPE of `anytune quantize` they are quantized on the way.
    Nothing in the folder is executed; pickled .bin weights are refused.
    """
    from anytune.cli.progress import Progress
    from anytune.convert import convert as run
    from anytune.text.pretokenizers import PRE
    from anytune.units import bytes_text

    place, source = Path(output).expanduser(), Path(folder).expanduser()
    if not source.is_dir():
        raise UserError(f"{folder} is not a folder: name one with config.json, safetensors and a tokenizer.")
    if place.is_dir():
        raise UserError(f"-o {output} is a folder: name a file.")
    check_output(place, forced(), [("the model's folder", source)])
    if pre is not None and pre not in PRE:
        raise UserError(
            f"There is no pre-tokenizer {pre!r} in llama.cpp; some are llama-bpe, qwen2, smollm, gpt-4o and tekken."
        )
    with Progress("convert", "weights", quiet=as_json) as progress:
        facts = run(source, place, kind, pre=pre, name=name, progress=progress.to)
    for sentence in facts["notes"]:
        note(sentence)
    if as_json:
        print_json(facts)
        return
    click.echo(
        f"{facts['architecture']}, {facts['parameters']:,} weights in {facts['tensors']} tensors, "
        f"{facts['type']}, {bytes_text(facts['bytes'])}; {facts['tokens']:,} tokens, pre-tokenizer "
        f"{facts['pre']}"
    )
    click.echo(output)
