"""anytune export merge, ollama and lmstudio: base and adapter in one GGUF file."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from anytune.cli.common import Command, existing_file, json_option, load_model, model_options, note, read_text
from anytune.cli.export import export, finish, lora_options, open_pair, verify_option
from anytune.cli.progress import Progress
from anytune.errors import UserError

if TYPE_CHECKING:
    from anytune.adapter import Adapter
    from anytune.export.distance import Served
    from anytune.export.merge import Merge
    from anytune.model import Model

NOTHING = 1e-7  # nats: what the 16-bit distributions that are compared tell from zero
_OPTIONS = (
    click.option("--type", "kind", metavar="TYPE",
                 help="auto (the default): the file's own types if they hold the adapter, else the smallest that do. "
                 "same: the file's own. Or a type of `anytune quantize`."),
    click.option("--tolerance", type=click.FloatRange(0), default=0.05, show_default=True, metavar="SHARE",
                 help="What auto may lose: KL to the served pair, as a share of the KL that the adapter makes."),
    click.option("--candidates", metavar="TYPE,TYPE",
                 help="What auto and --compare try, instead of the file's own and finer ones."),
    click.option("--tensor-type", "overrides", multiple=True, metavar="PATTERN=TYPE",
                 help="Tensors whose names match this regular expression get this type. May be repeated."),
    click.option("--imatrix", metavar="FILE", help="Importances of the weights' columns, from `anytune imatrix`."),
    click.option("-f", "--file", metavar="FILE", help="The text to compare on, instead of a short built-in one."),
    click.option("--chunks", type=click.IntRange(2), metavar="N", default=16, show_default=True,
                 help="Windows of the text at most."),
)


@dataclass(frozen=True)
class _Choice:
    """The options of merging."""

    kind: str | None
    tolerance: float
    candidates: str | None
    overrides: tuple[str, ...]
    imatrix: str | None
    file: str | None
    chunks: int


def _merge_options(command: Callable) -> Callable:
    @functools.wraps(command)
    def gathered(*args: Any, kind: str | None, tolerance: float, candidates: str | None, overrides: tuple[str, ...],
                 imatrix: str | None, file: str | None, chunks: int, **kwargs: Any) -> Any:
        return command(*args, choice=_Choice(kind, tolerance, candidates, overrides, imatrix, file, chunks), **kwargs)

    for option in reversed(_OPTIONS):
        gathered = option(gathered)
    return lora_options(model_options(gathered))


class _Work:
    """One merge from the command line: the pair, the text, the table that grows."""

    def __init__(self, model: Model, adapter: Adapter | None, choice: _Choice, engine: dict, as_json: bool):
        from anytune.cli.quantize import pairs
        from anytune.export.merge import Merge

        self.model, self.adapter, self.choice, self.engine, self.as_json = model, adapter, choice, engine, as_json
        self.text = None if choice.file is None else read_text(choice.file)
        imatrix = None if choice.imatrix is None else str(existing_file(choice.imatrix, "importance"))
        self.job: Merge = Merge(model.gguf, adapter, self.open, pairs(choice.overrides), imatrix, engine["threads"],
                                progress=self.progress)
        self.facts: dict[str, Any] = {}
        self.bar: Progress | None = None

    def open(self, path: Path) -> Model:
        return load_model(str(path), self.engine)

    def progress(self, what: str, unit: str = "weights") -> Callable[[int, int], None]:
        self.close()
        self.bar = Progress(what, unit, quiet=self.as_json)
        return self.bar.to

    def close(self) -> None:
        """End the line of progress that may stand unfinished."""
        if self.bar is not None:
            self.bar.__exit__()
            self.bar = None

    def served(self) -> Served:
        from anytune.export.distance import Served

        served = Served(self.model, self.adapter, self.text, chunks=self.choice.chunks)
        self.facts["tokens"] = served.facts["tokens"]
        self.facts["adapter_kl"] = None
        if self.adapter is not None:
            self.facts["adapter_kl"] = kl = served.distance(self.model)["kl"]
            self.say(f"the adapter moves the base by KL {kl:.4g} on {self.facts['tokens']} tokens")
            if kl < NOTHING:
                note("that is next to nothing: is it the adapter that you mean, and a text that it was trained for?")
        return served

    def merge(self, target: Path | None, kind: str, served: Served) -> dict[str, Any] | None:
        """Write `target` in `kind`, or in the type that auto finds; returns what was taken. No target: compare all."""
        from anytune.export.merge import candidates

        several = kind == "auto" or target is None
        names = self.choice.candidates.split(",") if self.choice.candidates else None
        kinds = candidates(self.model.gguf, names) if several else candidates(self.model.gguf, [kind])
        limit = None if target is None else self.choice.tolerance * self.facts["adapter_kl"] if several else math.inf
        self.say(f"{'type':<8}{'size':>11}{'weight error':>14}{'change kept':>13}{'KL to the pair':>16}"
                 f"{'of its KL':>11}{'top-1':>8}")
        self.facts["types"] = self.job.choose(target, kinds, served, limit, self.row)
        taken = next((row for row in self.facts["types"] if row["taken"]), None)
        if taken is not None and self.adapter is not None:
            self.warn(taken)
        return taken

    def row(self, row: dict[str, Any]) -> None:
        from anytune.units import bytes_text

        kept = "–" if row["kept"] is None else f"{row['kept']:.1%}"
        of = self.facts["adapter_kl"]
        share = f"{row['kl'] / of:.1%}" if of else "–"
        self.say(f"{row['type']:<8}{bytes_text(row['bytes']):>11}{row['error']:>14.2%}{kept:>13}{row['kl']:>16.3g}"
                 f"{share:>11}{row['same_top']:>8.1%}")

    def warn(self, taken: dict[str, Any]) -> None:
        lost = taken["kl"] / max(self.facts["adapter_kl"], 1e-12)
        if lost > self.choice.tolerance:
            note(f"{taken['type']} is off by {lost:.0%} of what the adapter does: a finer --type loses less, --absorb "
                 "holds what is lost in a small adapter, and --lora beside the model loses nothing")

    def say(self, line: str) -> None:
        self.close()
        if not self.as_json:
            click.echo(line)


@export.command(cls=Command, short_help="Base and adapters in one GGUF file.", example="""
    anytune export merge -m base.gguf --lora a.gguf -o merged.gguf
    anytune export merge -m base.gguf --lora a.gguf --lora-scaled b.gguf:0.5 -o merged.gguf --type Q8_0
    anytune export merge -m base.gguf --lora a.gguf --compare --candidates same,Q5_K_M,Q8_0 -f text.txt
    anytune export merge -m base.gguf --lora a.gguf -o merged.gguf --type same --absorb 16 -f text.txt
""")
@_merge_options
@click.option("-o", "--output", metavar="GGUF", help="The file to write.")
@click.option("--compare", is_flag=True, help="Measure all candidates and write nothing.")
@click.option("--absorb", type=click.IntRange(1, 4096), metavar="RANK",
              help="Write an adapter of this rank too, which holds what rounding lost (QERA).")
@click.option("--residual-lora", "residual", metavar="GGUF",
              help="Where --absorb writes it. Default: the output's name with -residual.")
@click.option("--qera", type=click.Choice(["auto", "exact", "approx"]), default="auto", show_default=True,
              help="exact: the inputs' whole autocorrelation; approx: their mean squares; auto: exact where it fits.")
@click.option("--calibration", metavar="FILE", help="The text that --absorb measures inputs on. Default: that of -f.")
@verify_option
@json_option
def merge(model: str, engine: dict, loras: tuple[str, ...], scaled: tuple[str, ...], choice: _Choice,
          output: str | None, compare: bool, absorb: int | None, residual: str | None, qera: str,
          calibration: str | None, no_verify: bool, as_json: bool) -> int:
    """Merge adapters into the base and write one GGUF file.

    What was trained is base and adapter side by side. Rounding the sum to few bits loses some of it, at 4 bits often
    most: so each type is measured against the served pair, in its weights and by the KL divergence on a text.
    """
    from anytune.export import checks
    from anytune.export.merge import check_target

    if output is None and not compare:
        raise UserError("There is nowhere to write to: give -o, or --compare to measure only.")
    if residual is not None and absorb is None:
        raise UserError("--residual-lora goes with --absorb RANK.")
    if absorb is not None and (compare or calibration is None and choice.file is None):
        raise UserError("--absorb goes with a written file, and needs a text to measure on: -f or --calibration.")
    loaded, adapter = open_pair(model, engine, loras, scaled, needed=absorb is None)
    if adapter is None and choice.kind in (None, "auto", "same"):
        raise UserError("Without an adapter --absorb needs a --type to round to.")
    work = _Work(loaded, adapter, choice, engine, as_json)
    beside, target = None, None if compare else Path(output or "")
    if target is not None:
        check_target(loaded.gguf, target)
    if absorb is not None:
        beside = Path(residual or Path(output or "").with_suffix("").as_posix() + "-residual.gguf")
        if not beside.parent.is_dir() or beside.suffix != ".gguf" or beside in (target, Path(loaded.gguf.path)):
            raise UserError(f"--residual-lora {beside} must be a .gguf file of its own, in a folder that exists.")
    words = read_text(calibration) if calibration else work.text
    with work.served() as served:
        taken = work.merge(target, choice.kind or ("auto" if absorb is None else "same"), served)
        if target is not None and beside is not None:
            work.facts["residual"] = _absorb(work, target, beside, absorb or 0, qera, words or "", served)
    if target is None:
        return finish(work.facts, [], as_json, [])
    merged = work.open(target)
    found = [] if no_verify else [checks.in_llamacpp(merged, beside, small=True, threads=engine["threads"])]
    return finish({**work.facts, "path": str(target), "taken": taken}, found, as_json,
                  [f"{taken['type']}: {target}", *([str(beside)] if beside else [])])


def _absorb(work: _Work, target: Path, beside: Path, rank: int, way: str, text: str, served: Served) -> dict[str, Any]:
    from anytune.export.absorb import residual, statistics

    inputs, way = statistics(work.model, work.adapter, text, way, chunks=work.choice.chunks,
                             progress=work.progress("inputs", "tokens"))
    merged = work.open(target)
    made = residual(work.model.gguf, work.adapter, merged.gguf, inputs, rank,
                    work.progress("absorb", "matrices"))
    made.save(beside)
    facts = {"path": str(beside), "rank": rank, "way": way, **served.distance(merged, made)}
    work.say(f"with the residual adapter (rank {rank}, QERA-{way}): KL to the pair {facts['kl']:.3g}, "
             f"top-1 {facts['same_top']:.1%}")
    return facts


@export.command(cls=Command, short_help="A folder with a Modelfile for Ollama.", example="""
    anytune export ollama -m base.gguf --lora a.gguf -o wren
    ollama create wren -f wren/Modelfile
""")
@_merge_options
@click.option("-o", "--output", required=True, metavar="FOLDER", help="The folder to make.")
@click.option("--name", help="Name of the weights file. Default: the base's, with -merged.")
@click.option("--keep-adapter", is_flag=True,
              help="Write FROM and ADAPTER instead of merging; not all versions take it.")
@click.option("--system", metavar="TEXT", help="The system message of every conversation.")
@click.option("--parameter", "parameters", multiple=True, metavar="NAME=VALUE",
              help="A PARAMETER line, such as num_ctx=8192. May be repeated.")
@verify_option
@json_option
def ollama(model: str, engine: dict, loras: tuple[str, ...], scaled: tuple[str, ...], choice: _Choice, output: str,
           name: str | None, keep_adapter: bool, system: str | None, parameters: tuple[str, ...], no_verify: bool,
           as_json: bool) -> int:
    """Write a folder that `ollama create` takes: the merged file, and a Modelfile with template and stops.

    The chat template is translated to Ollama's language by taking it apart, and only if the result renders a row of
    conversations as the original does. Tools are not translated.
    """
    from anytune.export import checks
    from anytune.export.folder import check_new, new_folder
    from anytune.export.ollama import modelfile
    from anytune.export.packages import chat_parts, default_name, plain_name

    pairs = [tuple(text.split("=", 1)) for text in parameters]
    if any(len(pair) != 2 or not all(pair) or "\n" in "".join(pair) for pair in pairs):
        raise UserError("--parameter takes NAME=VALUE, such as num_ctx=8192.")
    check_new(Path(output))
    loaded, adapter = open_pair(model, engine, loras, scaled)
    template, stops, remark = chat_parts(loaded, adapter)
    if remark:
        note(remark)
    file = f"{plain_name(name) if name else default_name(loaded)}.gguf"
    work = _Work(loaded, adapter, choice, engine, as_json)
    with new_folder(output) as made:
        if keep_adapter:
            adapter.save(made / "adapter.gguf")
            weights, beside = str(Path(loaded.gguf.path).resolve()), "./adapter.gguf"
        else:
            with work.served() as served:
                work.merge(made / file, choice.kind or "auto", served)
            weights, beside = f"./{file}", None
        text = modelfile(weights, template=template, adapter=beside, stops=stops, system=system, parameters=pairs)
        (made / "Modelfile").write_text(text, "utf-8")
    folder = Path(output)
    found = []
    if not no_verify:
        found = [checks.in_llamacpp(loaded, folder / "adapter.gguf", threads=engine["threads"]) if keep_adapter
                 else checks.in_llamacpp(work.open(folder / file), threads=engine["threads"])]
    return finish({**work.facts, "path": output, "template": template, "stops": stops}, found, as_json,
                  [f"{folder / 'Modelfile'}   (ollama create {plain_name(folder.name)} -f {folder / 'Modelfile'})"])


@export.command(cls=Command, short_help="The merged model where LM Studio finds it.", example="""
    anytune export lmstudio -m base.gguf --lora a.gguf -o ~/.lmstudio/models --publisher me --name wren
""")
@_merge_options
@click.option("-o", "--output", required=True, metavar="FOLDER", help="LM Studio's folder of models.")
@click.option("--publisher", default="anytune", show_default=True, help="The first folder's name.")
@click.option("--name", help="The model's name. Default: the base's, with -merged.")
@verify_option
@json_option
def lmstudio(model: str, engine: dict, loras: tuple[str, ...], scaled: tuple[str, ...], choice: _Choice, output: str,
             publisher: str, name: str | None, no_verify: bool, as_json: bool) -> int:
    """Write FOLDER/publisher/name/name.gguf, the merged file with its chat template and end of turn in the metadata."""
    from anytune.export import checks
    from anytune.export.folder import check_new, new_folder
    from anytune.export.packages import default_name, plain_name

    if not Path(output).is_dir():
        raise UserError(f"There is no folder {output}: name LM Studio's folder of models, often ~/.lmstudio/models.")
    loaded, adapter = open_pair(model, engine, loras, scaled)
    name = plain_name(name) if name else default_name(loaded)
    folder = Path(output) / plain_name(publisher) / name
    folder.parent.mkdir(exist_ok=True)
    check_new(folder)
    work = _Work(loaded, adapter, choice, engine, as_json)
    with new_folder(folder) as made, work.served() as served:
        work.merge(made / f"{name}.gguf", choice.kind or "auto", served)
    path = folder / f"{name}.gguf"
    found = [] if no_verify else [checks.in_llamacpp(work.open(path), threads=engine["threads"])]
    return finish({**work.facts, "path": str(path)}, found, as_json, [str(path)])
