"""anytune export card: an adapter's README."""

from __future__ import annotations

from pathlib import Path

import click

from anytune.cli.command import Command
from anytune.cli.export_merge import export
from anytune.cli.opening import existing_file, model_path
from anytune.cli.options import force_option, forced, model_option
from anytune.errors import UserError
from anytune.files import atomic_write, cannot_write, check_output


@export.command(
    cls=Command,
    short_help="Write an adapter's README: base, data, settings, scores, licence.",
    example="""
    anytune export card -m model.gguf --lora adapter.gguf --run runs/my-run -o README.md
    anytune export card -m model.gguf --lora adapter.gguf --scores report.json --license cc-by-4.0 -o README.md
""",
)
@model_option
@click.option("--lora", required=True, metavar="ADAPTER", help="The adapter: a GGUF file or a peft folder.")
@click.option("--run", metavar="FOLDER", help="Its run folder, for data, settings, losses and time.")
@click.option(
    "--scores", multiple=True, metavar="REPORT", help="A JSON report of `anytune evaluate` to quote. May be repeated."
)
@click.option("--license", metavar="NAME", help="The adapter's licence, such as apache-2.0.  [default: the base's]")
@click.option("-o", "--output", required=True, metavar="FILE", help="Where to write the README.")
@force_option
def card(model: str, lora: str, run: str | None, scores: tuple[str, ...], license: str | None, output: str) -> None:
    """Write what others need to know about an adapter, as a README with Hugging Face's front matter.

    Unknown fields are marked TODO.
    """
    from anytune.adapter.adapter import Adapter
    from anytune.export.card import card as written
    from anytune.gguf import GGUF

    path, reports = Path(lora).expanduser(), [existing_file(report, "report") for report in scores]
    folder = None if run is None else Path(run).expanduser()
    inside = [] if folder is None else [folder / "settings.json", folder / "metrics.jsonl"]
    check_output(
        output,
        forced(),
        [
            ("the model", model_path(model)),
            ("the adapter", path),
            *(("a report", report) for report in reports),
            *(("the run", file) for file in inside),
        ],
    )
    if folder is not None and not inside[0].is_file():
        raise UserError(f"--run {folder} is not a run folder: it has no settings.json.")
    with GGUF.open(model_path(model)) as base:
        adapter = Adapter.load(path if path.is_dir() else existing_file(path, "adapter"), gguf=base)
        text = written(base, adapter, path, run=folder, reports=reports, license=license)
    try:
        with atomic_write(output, "w") as file:
            file.write(text)
    except OSError as error:
        raise cannot_write(output, error) from None
    click.echo(f"{output}" + (f": {text.count('TODO')} places are left to you, marked TODO" if "TODO" in text else ""))
