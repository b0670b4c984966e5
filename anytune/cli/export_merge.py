"""anytune export merge, ollama and lmstudio: base and adapter in one GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from anytune.cli.command import Command
from anytune.cli.export import export, finish, open_pair, verify_option
from anytune.cli.merging import Choice, Work, merge_options
from anytune.cli.opening import model_path, read_text
from anytune.cli.options import forced, json_option
from anytune.cli.say import note
from anytune.errors import UserError
from anytune.files import spare_inputs

if TYPE_CHECKING:
    from anytune.export.distance import Served


@export.command(
    cls=Command,
    short_help="Merge base and adapters into one GGUF file.",
    renamed={"--compare": "--dry-run"},
    example="""
    anytune export merge -m base.gguf --lora a.gguf -o merged.gguf
    anytune export merge -m base.gguf --lora a.gguf --lora-scaled b.gguf:0.5 -o merged.gguf --type Q8_0
    anytune export merge -m base.gguf --lora a.gguf --dry-run --candidates same,Q5_K_M,Q8_0 -f text.txt
    anytune export merge -m base.gguf --lora a.gguf -o merged.gguf --type same --absorb 16 -f text.txt
""",
)
@merge_options
@click.option("-o", "--output", metavar="GGUF", help="The file to write.")
@click.option("--dry-run", "compare", is_flag=True, help="Measure all candidates, write nothing.")
@click.option(
    "--absorb",
    type=click.IntRange(1, 4096),
    metavar="RANK",
    help="Also write an adapter of this rank that compensates for the rounding error.",
)
@click.option(
    "--residual-lora",
    "residual",
    metavar="GGUF",
    help="Where --absorb writes it. Default: the output's name with -residual.",
)
@click.option(
    "--qera",
    type=click.Choice(["auto", "exact", "approx"]),
    default="auto",
    show_default=True,
    help="auto: fitted layer by layer, as `anytune adapt repair` does; or QERA's closed form, exact: with the "
    "inputs' full autocorrelation, approx: with their mean squares.",
)
@click.option("--calibration", metavar="FILE", help="The text on which --absorb measures inputs. Default: that of -f.")
@verify_option
@json_option
def merge(
    model: str,
    engine: dict,
    loras: tuple[str, ...],
    scaled: tuple[str, ...],
    choice: Choice,
    output: str | None,
    compare: bool,
    absorb: int | None,
    residual: str | None,
    qera: str,
    calibration: str | None,
    no_verify: bool,
    as_json: bool,
) -> int:
    """Merge adapters into the base and write one GGUF file.

    Training produced a base and an adapter side by side. Rounding their sum to few bits loses part of the change, at 4
    bits often most of it, so each type is compared with the pair, by its weights and by the KL divergence on a text.
    """
    from anytune.export import checks

    if output is None and not compare:
        raise UserError("There is no output: give -o, or --dry-run to only measure.")
    if residual is not None and absorb is None:
        raise UserError("--residual-lora needs --absorb RANK.")
    if absorb is not None and (compare or calibration is None and choice.file is None):
        raise UserError("--absorb needs an output file, and a text to measure on: -f or --calibration.")
    beside, target = None, None if compare else Path(output or "")
    if absorb is not None:
        beside = Path(residual or Path(output or "").with_suffix("").as_posix() + "-residual.gguf")
        if beside.suffix != ".gguf":
            raise UserError(f"--residual-lora {beside} must be a .gguf file.")
        spare_inputs([beside], [("the merged file", target)])
    loaded, adapter = open_pair(
        model,
        engine,
        loras,
        scaled,
        needed=absorb is None,
        outputs=[target, beside],
        inputs=[*choice.inputs, ("the text", calibration)],
    )
    if adapter is None and choice.kind in (None, "auto", "same"):
        raise UserError("Without an adapter --absorb needs a --type to round to.")
    work = Work(loaded, adapter, choice, engine, as_json)
    words = read_text(calibration) if calibration else work.text
    with work.served() as served:
        taken = work.merge(target, choice.kind or ("auto" if absorb is None else "same"), served)
        if target is not None and beside is not None:
            work.facts["residual"] = _absorb(work, target, beside, absorb or 0, qera, words or "", served)
    if target is None:
        return finish(work.facts, [], as_json, [])
    merged = work.open(target)
    found = [] if no_verify else [checks.in_llamacpp(merged, beside, small=True, threads=engine["threads"])]
    return finish(
        {**work.facts, "path": str(target), "taken": taken},
        found,
        as_json,
        [f"{taken['type']}: {target}", *([str(beside)] if beside else [])],
    )


def _absorb(work: Work, target: Path, beside: Path, rank: int, way: str, text: str, served: Served) -> dict[str, Any]:
    from anytune.export.absorb import residual, statistics

    merged = work.open(target)
    if way == "auto":
        from anytune.adapt.repairing import restore

        bar = work.progress("absorb", "layers")
        made = restore(merged, work.model, work.adapter, text, rank, work.choice.chunks, lambda _, *at: bar(*at[:2]))
        name = "sequential fit"
    else:
        inputs, way = statistics(
            work.model, work.adapter, text, way, chunks=work.choice.chunks, progress=work.progress("inputs", "tokens")
        )
        made = residual(work.model.gguf, work.adapter, merged.gguf, inputs, rank, work.progress("absorb", "matrices"))
        name = f"QERA-{way}"
    made.save(beside)
    facts = {
        "path": str(beside),
        "rank": rank,
        "way": "sequential" if way == "auto" else way,
        **served.distance(merged, made),
    }
    work.say(
        f"with the residual adapter (rank {rank}, {name}): KL to the pair {facts['kl']:.3g}, "
        f"top-1 {facts['same_top']:.1%}"
    )
    return facts


@export.command(
    cls=Command,
    short_help="Export a folder with a Modelfile for Ollama.",
    example="""
    anytune export ollama -m base.gguf --lora a.gguf -o wren
    ollama create wren -f wren/Modelfile
""",
)
@merge_options
@click.option("-o", "--output", required=True, metavar="FOLDER", help="The folder to create.")
@click.option("--name", help="Name of the weights file. Default: the base's, with -merged.")
@click.option(
    "--keep-adapter", is_flag=True, help="Write FROM and ADAPTER instead of merging; not all versions support it."
)
@click.option("--no-template", is_flag=True, help="Write no TEMPLATE: Ollama looks for one that it knows.")
@click.option(
    "--accept-differences",
    is_flag=True,
    help="Write the TEMPLATE even if Ollama cannot express all of it: whitespace, reasoning, tools, dates.",
)
@click.option("--system", metavar="TEXT", help="The system message of every conversation.")
@click.option(
    "--parameter",
    "parameters",
    multiple=True,
    metavar="NAME=VALUE",
    help="A PARAMETER line, such as num_ctx=8192. May be repeated.",
)
@verify_option
@json_option
def ollama(
    model: str,
    engine: dict,
    loras: tuple[str, ...],
    scaled: tuple[str, ...],
    choice: Choice,
    output: str,
    name: str | None,
    keep_adapter: bool,
    no_template: bool,
    accept_differences: bool,
    system: str | None,
    parameters: tuple[str, ...],
    no_verify: bool,
    as_json: bool,
) -> int:
    """Write a folder for `ollama create`: the merged file, and a Modelfile with template and stops.

    The chat template is translated to Ollama's template language, and used only if it renders a set of conversations
    exactly as the original does; otherwise nothing is written, unless --no-template is given. What Ollama's templates
    cannot express (tools, dates, trimmed whitespace) is refused by name, unless --accept-differences is given.
    """
    from anytune.export import checks
    from anytune.folder import new_folder
    from anytune.export.ollama import modelfile
    from anytune.export.packages import chat_parts, default_name, plain_name

    pairs = [tuple(text.split("=", 1)) for text in parameters]
    if any(len(pair) != 2 or not all(pair) or "\n" in "".join(pair) for pair in pairs):
        raise UserError("--parameter takes NAME=VALUE, such as num_ctx=8192.")
    loaded, adapter = open_pair(model, engine, loras, scaled, folder=output, inputs=choice.inputs)
    template, stops, remarks = chat_parts(
        loaded, adapter, system, needed=not no_template, accept_differences=accept_differences
    )
    file = f"{plain_name(name) if name else default_name(loaded)}.gguf"
    weights = str(Path(loaded.gguf.path).resolve()) if keep_adapter else f"./{file}"
    text = modelfile(
        weights,
        template=template,
        adapter="./adapter.gguf" if keep_adapter else None,
        stops=stops,
        system=system,
        parameters=pairs,
    )
    for remark in remarks:
        note(remark)
    work = Work(loaded, adapter, choice, engine, as_json)
    with new_folder(output, force=forced()) as made:
        if keep_adapter:
            adapter.save(made / "adapter.gguf")
        else:
            with work.served() as served:
                work.merge(made / file, choice.kind or "auto", served)
        (made / "Modelfile").write_text(text, "utf-8")
    folder = Path(output)
    found = []
    if not no_verify:
        found = [
            checks.in_llamacpp(loaded, folder / "adapter.gguf", threads=engine["threads"])
            if keep_adapter
            else checks.in_llamacpp(work.open(folder / file), threads=engine["threads"])
        ]
    return finish(
        {**work.facts, "path": output, "template": template, "stops": stops},
        found,
        as_json,
        [f"{folder / 'Modelfile'}   (ollama create {plain_name(folder.name)} -f {folder / 'Modelfile'})"],
    )


@export.command(
    cls=Command,
    short_help="Export the merged model for LM Studio.",
    example="""
    anytune export lmstudio -m base.gguf --lora a.gguf -o ~/.lmstudio/models --publisher me --name wren
""",
)
@merge_options
@click.option("-o", "--output", required=True, metavar="FOLDER", help="LM Studio's models folder.")
@click.option("--publisher", default="anytune", show_default=True, help="The publisher, which names the first folder.")
@click.option("--name", help="The model's name. Default: the base's, with -merged.")
@verify_option
@json_option
def lmstudio(
    model: str,
    engine: dict,
    loras: tuple[str, ...],
    scaled: tuple[str, ...],
    choice: Choice,
    output: str,
    publisher: str,
    name: str | None,
    no_verify: bool,
    as_json: bool,
) -> int:
    """Write FOLDER/publisher/name/name.gguf, the merged file with its chat template and end of turn in the metadata."""
    from anytune.export import checks
    from anytune.folder import new_folder
    from anytune.export.packages import plain_name

    if not Path(output).is_dir():
        raise UserError(f"There is no folder {output}: name LM Studio's models folder, often ~/.lmstudio/models.")
    name = plain_name(name or f"{model_path(model).stem}-merged")
    folder = Path(output) / plain_name(publisher) / name
    loaded, adapter = open_pair(model, engine, loras, scaled, folder=folder, inputs=choice.inputs)
    work = Work(loaded, adapter, choice, engine, as_json)
    with new_folder(folder, force=forced()) as made, work.served() as served:
        work.merge(made / f"{name}.gguf", choice.kind or "auto", served)
    path = folder / f"{name}.gguf"
    found = [] if no_verify else [checks.in_llamacpp(work.open(path), threads=engine["threads"])]
    return finish({**work.facts, "path": str(path)}, found, as_json, [str(path)])
