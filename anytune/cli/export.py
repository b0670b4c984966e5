"""anytune export: a trained model for other programs. Merging is in export_merge.py."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from anytune.cli.command import Command, OrderedGroup
from anytune.cli.opening import load_reference, model_path
from anytune.cli.options import force_option, forced, json_option, model_options, template_option
from anytune.cli.say import note, print_json
from anytune.errors import UserError
from anytune.files import spare_inputs

if TYPE_CHECKING:
    from anytune.adapter.adapter import Adapter
    from anytune.model import Model


@click.group(cls=OrderedGroup, short_help="Export for llama.cpp, Ollama, LM Studio, transformers, peft, MLX.")
def export() -> None:
    """Write a trained model for llama.cpp, Ollama, LM Studio, transformers, peft or MLX.

    Each result is loaded in its target program, and its distributions are compared with the trained model's.
    """


_LORA = (
    click.option(
        "--lora",
        "loras",
        multiple=True,
        metavar="ADAPTER",
        help="A LoRA adapter: a GGUF file or a peft folder. May be repeated; the changes add up.",
    ),
    click.option(
        "--lora-scaled",
        "scaled",
        multiple=True,
        metavar="ADAPTER:SCALE",
        help="An adapter scaled by a factor, such as b.gguf:0.5. May be repeated.",
    ),
)


def verify_option(command: Callable) -> Callable:
    """--no-verify and --force: what every command that exports has."""
    option = click.option("--no-verify", is_flag=True, help="Do not load the result in the target program.")
    return option(force_option(command))


def lora_options(command: Callable) -> Callable:
    for option in reversed(_LORA):
        command = option(command)
    return command


def adapters_of(loras: tuple[str, ...], scaled: tuple[str, ...]) -> list[tuple[str, float]]:
    """[(path, weight)] as llama.cpp's flags mean them."""
    found = [(path, 1.0) for path in loras]
    for text in (part for item in scaled for part in item.split(",")):
        path, colon, factor = text.rpartition(":")
        try:
            found.append((path, float(factor)))
        except ValueError:
            colon = ""
        if not (colon and path):
            raise UserError(f"--lora-scaled takes ADAPTER:SCALE, such as b.gguf:0.5, not {text!r}.")
    return [(os.path.expanduser(path), weight) for path, weight in found]


def open_pair(
    model: str,
    engine: dict,
    loras: tuple[str, ...],
    scaled: tuple[str, ...],
    needed: bool = True,
    *,
    outputs: Iterable[str | Path | None] = (),
    folder: str | Path | None = None,
    inputs: Iterable[tuple[str, str | None]] = (),
) -> tuple[Model, Adapter | None]:
    """The model, and the adapters as one; None if none is needed and given.

    outputs, folder (a new one): what will be written, which must be none of what is read: model, adapters, and inputs
    (see spare_inputs).
    """
    from anytune.export.adapters import load
    from anytune.files import check_output

    sources = adapters_of(loras, scaled)
    spare_inputs(
        [*outputs, folder], [("the model", model_path(model)), *(("an adapter", path) for path, _ in sources), *inputs]
    )
    for path in outputs:
        check_output(path, forced())
    check_output(folder, forced(), folder=True)
    if needed and not sources:
        raise UserError("There is no adapter to export: name one with --lora.")
    loaded = load_reference(model, engine)
    return loaded, load(sources, loaded.gguf, note) if sources else None


def finish(facts: dict[str, Any], checks: list[dict[str, Any]], as_json: bool, lines: list[str]) -> int:
    """Print facts or lines, then what the checks found; the exit code is 1 if one failed."""
    from anytune.export.checks import line

    ok = all(check["ok"] is not False for check in checks)
    if as_json:
        print_json({**facts, "checks": checks, "ok": ok})
    elif lines or checks:
        click.echo("\n".join([*lines, *map(line, checks)]))
    return 0 if ok else 1


@export.command(
    cls=Command,
    short_help="Export an adapter as a peft folder, for transformers.",
    example="""
    anytune export peft -m model.gguf --lora adapter.gguf -o adapter-peft
""",
)
@model_options
@lora_options
@click.option("-o", "--output", required=True, metavar="FOLDER", help="The folder to create.")
@verify_option
@json_option
def peft(
    model: str,
    engine: dict,
    loras: tuple[str, ...],
    scaled: tuple[str, ...],
    output: str,
    no_verify: bool,
    as_json: bool,
) -> int:
    """Write an adapter (or the sum of several) as a peft folder.

    Names and row order become Hugging Face's. Verification runs in transformers on the base's own weights: it needs
    the extra `hf` (see the README's "Install") and memory for the model in float32.
    """
    from anytune.export import checks
    from anytune.folder import new_folder

    loaded, adapter = open_pair(model, engine, loras, scaled, folder=output)
    with new_folder(output, 4 * adapter.n_parameters, forced()) as made:
        adapter.save_peft(made, loaded.gguf)
    found = [] if no_verify else [checks.in_peft(Path(output), loaded, adapter)]
    return finish(_facts(output, adapter), found, as_json, [output])


@export.command(
    cls=Command,
    short_help="Export an adapter as a GGUF file, for llama.cpp.",
    example="""
    anytune export gguf -m model.gguf --lora adapter-peft -o adapter.gguf
    anytune export gguf -m model.gguf --lora a.gguf --lora-scaled b.gguf:0.5 -o both.gguf
""",
)
@model_options
@lora_options
@click.option("-o", "--output", required=True, metavar="GGUF", help="The file to write.")
@verify_option
@json_option
def gguf(
    model: str,
    engine: dict,
    loras: tuple[str, ...],
    scaled: tuple[str, ...],
    output: str,
    no_verify: bool,
    as_json: bool,
) -> int:
    """Write an adapter (or the sum of several) as a GGUF file that llama.cpp loads beside the model."""
    from anytune.export import checks

    if not output.lower().endswith(".gguf"):
        raise UserError(f"-o {output} must end in .gguf: llama.cpp needs a file.")
    loaded, adapter = open_pair(model, engine, loras, scaled, outputs=[output])
    adapter.save(output)
    found = [] if no_verify else [checks.in_llamacpp(loaded, output, threads=engine["threads"])]
    return finish(_facts(output, adapter), found, as_json, [output])


def _facts(path: str, adapter: Adapter) -> dict[str, Any]:
    return {
        "path": path,
        "tensors": len(adapter.tensors),
        "rank": adapter.rank,
        "alpha": adapter.alpha,
        "rslora": adapter.rslora,
    }


def _folder_command(name: str, text: str) -> None:
    """One command under two names: MLX reads the folder that transformers reads."""

    @export.command(
        name,
        cls=Command,
        short_help=text,
        renamed={"--outtype": "--type"},
        example=f"""
        anytune export {name} -m model.gguf --lora adapter.gguf -o merged-{name}
    """,
    )
    @model_options
    @lora_options
    @click.option("-o", "--output", required=True, metavar="FOLDER", help="The folder to create.")
    @click.option(
        "--type",
        "outtype",
        type=click.Choice(["bf16", "f16", "f32"], case_sensitive=False),
        default="bf16",
        show_default=True,
        help="Number format of the weights.",
    )
    @template_option
    @verify_option
    @json_option
    def command(
        model: str,
        engine: dict,
        loras: tuple[str, ...],
        scaled: tuple[str, ...],
        output: str,
        outtype: str,
        chat_template: str | None,
        no_verify: bool,
        as_json: bool,
    ) -> int:
        """Write the merged model and adapter as a folder with config.json, tokenizer files and model.safetensors.

        The weights are the GGUF file's, dequantized, with the adapter added (without --lora, only the model). Files
        above 5 GiB are split. transformers and MLX load the folder; it is verified in transformers.
        """
        from anytune.cli.opening import template_text
        from anytune.cli.progress import Progress
        from anytune.export import checks
        from anytune.export.huggingface import save
        from anytune.units import bytes_text

        template = None if chat_template is None else template_text(chat_template)
        loaded, adapter = open_pair(
            model, engine, loras, scaled, needed=False, folder=output, inputs=[("the chat template", chat_template)]
        )
        with Progress("export", "weights", quiet=as_json) as progress:
            facts = save(
                loaded.gguf, adapter, output, dtype=outtype, template=template, progress=progress.to, force=forced()
            )
        found = []
        if not no_verify:
            why = checks.transformers_missing(loaded)
            found = [
                checks.skipped("transformers", why) if why else checks.in_folder(Path(output), loaded, adapter, outtype)
            ]
        return finish(
            facts,
            found,
            as_json,
            [
                f"{facts['tensors']} tensors in {outtype}, {bytes_text(facts['bytes'])} in {facts['shards']} file"
                f"{'s' if facts['shards'] > 1 else ''}",
                output,
            ],
        )


_folder_command("hf", "Export the merged model as a folder for transformers.")
_folder_command("mlx", "Export the merged model as a folder for MLX.")
