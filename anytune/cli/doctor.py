"""anytune doctor: what this machine can do, and whether it computes right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from anytune.cli.command import Command
from anytune.cli.options import force_option, forced, json_option
from anytune.cli.say import print_json
from anytune.files import check_output


@click.command(
    cls=Command,
    short_help="Check this machine: devices and every operation.",
    example="""
    anytune doctor
    anytune doctor --json
    anytune doctor --report report.json
""",
)
@click.option("-t", "--threads", type=click.IntRange(1, 1024), metavar="N", help="CPU threads. Default: all cores.")
@click.option(
    "--kernels", metavar="DIR", help="Write the WebGPU engine's kernels to this folder as WGSL, and do nothing else."
)
@click.option(
    "--report",
    "place",
    metavar="FILE",
    help="Also measure every working device with a small random model, and write everything to this file, to "
    "attach to a bug report; it names no user, host or folder.",
)
@force_option
@json_option
def doctor(threads: int | None, kernels: str | None, place: str | None, as_json: bool) -> int:
    """Check this machine: devices, engines, versions, and every operation of every engine against known answers (some
    drivers report success and write nothing). The exit code is 1 if something is wrong."""
    from anytune.doctor import examine, report

    check_output(kernels, forced(), folder=True)
    if kernels is not None:
        from anytune.engine.webgpu.kernels.every import write

        click.echo(f"wrote {write(kernels)} kernels to {kernels}")
        return 0
    if place is not None:
        check_output(Path(place).expanduser(), forced())
    facts = examine(threads)
    if place is not None:
        _write(facts, Path(place).expanduser(), as_json)
    if as_json:
        print_json(facts)
    else:
        click.echo(report(facts) + (f"\n{place}" if place else ""))
    return 0 if facts["ok"] else 1


def _write(facts: dict[str, Any], place: Path, quiet: bool) -> None:
    from anytune.benchmark.report import machine_report, save
    from anytune.cli.progress import Progress

    sound = [engine["engine"] for engine in facts["engines"] if engine["ok"] and engine["engine"] != "fpga-sim"]
    with Progress("bench", "rounds", quiet) as progress:
        made = machine_report(facts, sound, progress.to)
    save(made, place)
