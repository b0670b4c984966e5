"""anytune runs: list run folders with their sizes, and free space."""

from __future__ import annotations

from pathlib import Path

import click

from anytune.cli.command import Command
from anytune.cli.options import json_option
from anytune.cli.say import print_json


@click.group(short_help="List run folders and free their space.")
def runs() -> None:
    """List the run folders under runs/ with their sizes, and remove what finished runs no longer need."""


_root = click.option("--root", default="runs", show_default=True, metavar="FOLDER", help="Folder with the run folders.")


@runs.command(
    "list",
    cls=Command,
    short_help="List runs and their disk usage.",
    example="""
    anytune runs list
    anytune runs list --json
""",
)
@_root
@json_option
def list_runs(root: str, as_json: bool) -> None:
    """List the runs in runs/, newest last: model, steps, loss, and disk usage."""
    from anytune.train.folders import folders
    from anytune.units import bytes_text

    found = folders(Path(root))
    if as_json:
        print_json([run.as_dict() for run in found])
        return
    if not found:
        click.echo(f"There are no runs in {root}.")
        return
    table = [("RUN", "MODEL", "STEPS", "LOSS", "BEST VAL", "STATE", "SIZE", "CHECKPOINTS")]
    for run in found:
        table.append(
            (
                run.path.name,
                run.model,
                f"{run.step}/{run.total}",
                "-" if run.loss is None else f"{run.loss:.4f}",
                "-" if run.best is None else f"{run.best:.4f}",
                run.state,
                bytes_text(run.bytes),
                bytes_text(run.checkpoint_bytes),
            )
        )
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    for line in table:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    click.echo(f"{len(found)} run{'s' * (len(found) > 1)}, {bytes_text(sum(run.bytes for run in found))}")


@runs.command(
    cls=Command,
    short_help="Remove the checkpoints of finished runs.",
    example="""
    anytune runs clean --dry-run
    anytune runs clean 2026-11-30-smollm2-135m-q4_1
""",
)
@click.argument("names", nargs=-1, metavar="[RUN]...")
@_root
@click.option(
    "--stopped",
    is_flag=True,
    help="Also of runs that stopped before their last step: they can then no longer be resumed.",
)
@click.option("--dry-run", is_flag=True, help="Show what would be removed, remove nothing.")
@json_option
def clean(names: tuple[str, ...], root: str, stopped: bool, dry_run: bool, as_json: bool) -> None:
    """Remove the checkpoints, and the copy of the best result, of all finished runs in runs/, or of the named ones.

    The result, metrics, settings, log and plot are kept. Runs that are still training, or that stopped early and could
    be resumed, are left alone.
    """
    from anytune.train import folders
    from anytune.units import bytes_text

    rows = []
    for run in folders.folders(Path(root), names):
        found = folders.needless(run, stopped)
        if not found:
            if names and not as_json:
                click.echo(f"{run.path}: nothing to remove ({run.state})")
            continue
        freed = sum(map(folders.taken, found)) if dry_run else folders.clean(run, stopped)
        rows.append({"path": str(run.path), "removed": [str(path) for path in found], "bytes": freed})
        if not as_json:
            click.echo(f"{run.path}: {'would free' if dry_run else 'freed'} {bytes_text(freed)}")
    if as_json:
        print_json(rows)
    elif not rows and not names:
        click.echo(f"There is nothing to remove in {root}.")
