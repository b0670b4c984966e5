"""anytune doctor: what this machine can do, and whether it computes right."""

from __future__ import annotations

import click

from anytune.cli.common import Command, json_option, print_json


@click.command(
    cls=Command,
    short_help="Check this machine: devices, every operation.",
    example="""
    anytune doctor
    anytune doctor --json
""",
)
@click.option("-t", "--threads", type=click.IntRange(1, 1024), metavar="N", help="CPU threads. Default: the cores.")
@click.option(
    "--kernels",
    type=click.Path(file_okay=False),
    metavar="DIR",
    help="Write the WebGPU engine's kernels to this folder, as WGSL to be read, and do nothing else.",
)
@json_option
def doctor(threads: int | None, kernels: str | None, as_json: bool) -> int:
    """Examine this machine: devices, engines, versions, and every operation of
    every engine against known answers (there are drivers that report success and write nothing). Exit code 1
    if something is wrong."""
    from anytune.doctor import examine, report

    if kernels is not None:
        from anytune.engine.webgpu.kernels.every import write

        click.echo(f"{write(kernels)} kernels are in {kernels}")
        return 0
    facts = examine(threads)
    if as_json:
        print_json(facts)
    else:
        click.echo(report(facts))
    return 0 if facts["ok"] else 1
