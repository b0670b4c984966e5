"""anytune monitor: look at a run on this machine while it trains, or after."""

from __future__ import annotations

import sys

import click

from anytune.cli.command import Command
from anytune.cli.options import json_option
from anytune.cli.say import print_json


@click.command(
    cls=Command,
    short_help="Watch a run: loss, learning rate, time left, memory, log.",
    example="""
    anytune monitor                              # the run that was written last
    anytune monitor runs/2026-11-30-qwen3-1.7b
    anytune monitor --once --json
""",
)
@click.argument("run", required=False)
@click.option(
    "--every",
    type=click.FloatRange(0.2, 3600),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="Interval between updates.",
)
@click.option("--once", is_flag=True, help="Print the current state and exit.")
@json_option
def monitor(run: str | None, every: float, once: bool, as_json: bool) -> None:
    """Show the state of a run: loss plot, learning rate, time left and per epoch, memory and the end of its log.

    Only reads the run's folder, so the run may have been started anywhere on this machine. Ctrl-C exits and leaves the
    run alone. Without a terminal, prints once and exits.
    """
    from anytune.train.monitor import RunView, find_run, watch

    path = find_run(run)
    if once or as_json or not sys.stdout.isatty():
        view = RunView(path)
        print_json(view.as_dict()) if as_json else click.echo(view.text())
        return
    for view in watch(path, every):
        click.echo("\x1b[H\x1b[2J" + view.text())
