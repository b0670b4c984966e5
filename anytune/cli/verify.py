"""anytune verify: the model and an adapter in llama.cpp, compared with what anytune computes."""

from __future__ import annotations

import click

from anytune.cli.command import Command
from anytune.cli.opening import existing_file, load_reference, read_text
from anytune.cli.options import json_option, lora_option, model_options
from anytune.cli.say import print_json


@click.command(
    cls=Command,
    short_help="Verify that llama.cpp computes the same.",
    example="""
    anytune verify -m model.gguf --lora adapter.gguf
    anytune verify -m model.gguf --lora adapter.gguf --exact --json
""",
)
@model_options
@lora_option
@click.option("-f", "--file", metavar="FILE", help="A text to compare on, instead of the built-in one.")
@click.option(
    "--positions",
    type=click.IntRange(1, 512),
    default=12,
    show_default=True,
    help="Number of next-token distributions compared.",
)
@click.option(
    "--exact",
    is_flag=True,
    help="Give llama.cpp an F32 copy of the model (4 bytes per weight, in a temporary file). On quantized weights "
    "it rounds activations to 8 bits, which limits the check to KL < 1e-2 instead of 1e-5.",
)
@json_option
def verify(
    model: str, engine: dict, lora: str | None, file: str | None, positions: int, exact: bool, as_json: bool
) -> int:
    """Verify that llama.cpp computes what anytune computes.

    Loads the same model in llama.cpp, with and without the adapter, and compares next-token distributions: KL
    divergence, the most likely token, and the adapter's effect. The exit code is 0 if they agree and 1 if not. anytune
    uses its float32 reference engine unless --device names another. Needs the package xllamacpp, which includes a
    prebuilt llama.cpp.
    """
    from anytune.llamacpp.judge import need_llamacpp

    need_llamacpp()
    text = None
    if file is not None:
        text = read_text(file)
    loaded = load_reference(model, engine)
    if lora is not None:
        from pathlib import Path

        if not Path(lora).is_dir():
            existing_file(lora, "adapter")
    from anytune.llamacpp.verify import report, verify_then_exact

    facts = verify_then_exact(loaded, lora, text=text, positions=positions, exact=exact, threads=engine["threads"])
    if as_json:
        print_json(facts)
    else:
        click.echo(report(facts))
    return 0 if facts["ok"] else 1
