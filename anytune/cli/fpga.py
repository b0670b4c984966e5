"""anytune fpga: hardware cores, simulated, written out as Verilog, and routed."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import click

from anytune.cli import fpga_plan
from anytune.cli.command import Command, OrderedGroup
from anytune.cli.opening import model_path
from anytune.cli.options import force_option, forced, json_option, model_option
from anytune.cli.say import print_json
from anytune.errors import UserError
from anytune.files import check_output


@click.group(cls=OrderedGroup, short_help="FPGA cores for LoRA: simulate, export, route, plan.")
def fpga() -> None:
    """Hardware cores that compute LoRA's forward and backward from a GGUF file's own blocks.

    FPGA designs, simulated and routed with open tools, which the extra `fpga` brings.
    """


@fpga.command(
    cls=Command,
    short_help="Simulate the design on a layer of a model, against its software model.",
    example="""
    anytune fpga simulate -m smollm2-135m --layer 0 --tokens 128
    anytune fpga simulate -m smollm2-135m --decode --mhz 100
    anytune fpga simulate -m model.gguf --tokens 32 --vcd engine.vcd
""",
)
@model_option
@click.option("--layer", type=click.IntRange(0), default=0, show_default=True, metavar="N", help="The layer.")
@click.option(
    "--tokens",
    type=click.IntRange(1, 4096),
    default=128,
    show_default=True,
    metavar="N",
    help="Tokens of a step; tiles of 32.",
)
@click.option(
    "--lora-rank",
    "rank",
    type=click.IntRange(0, 1024),
    default=16,
    show_default=True,
    metavar="R",
    help="Rank of the LoRA pairs; 0 disables them.",
)
@click.option("--vcd", "trace", default="", metavar="FILE", help="Also write the streams' waveform as VCD.")
@click.option("--decode", is_flag=True, help="One token, forward only, as in generation.")
@click.option(
    "--mhz",
    type=click.FloatRange(0.001, 10_000),
    metavar="F",
    help="Clock for --decode's times.  [default: that of the ECP5-85 in `fpga plan`]",
)
@force_option
@json_option
def simulate(
    model: str, layer: int, tokens: int, rank: int, trace: str, decode: bool, mhz: float | None, as_json: bool
) -> int:
    """Compute every product of a layer's linears, forward and backward, in the Verilated design and its software model.

    Needs a C++ compiler. The first run builds the simulator (a minute), which is cached. The exit code is 1 if a sum
    differs, or if the number of cycles is not the planned one.
    """
    from anytune.fpga import layer as layers

    path = str(model_path(model))
    check_output(Path(trace).expanduser() if trace else None, forced(), [("the model", path)])
    found = layers.simulate(
        path,
        layer,
        1 if decode else tokens,
        rank,
        trace and str(Path(trace).expanduser()),
        backward=not decode,
        say=(lambda text: None) if as_json else click.echo,
    )
    same = found["cycles"] == found["planned_cycles"]
    if decode:
        found["decode"] = _decode(path, found["cycles"], rank, mhz)
    if as_json:
        print_json(found)
    else:
        click.echo(
            f"{found['sums'] - found['wrong']:,} of {found['sums']:,} sums exact; {found['cycles']:,} cycles"
            f"{', as planned' if same else ', planned were {:,}'.format(found['planned_cycles'])}; "
            f"the cells compute in {found['busy']:.1%} of them"
        )
        if decode:
            one = found["decode"]
            click.echo(
                f"the token's products are {found['occupancy']:.1%} of what the cells could do; at {one['mhz']:g} MHz "
                f"this layer takes {one['layer_ms']:.2f} ms, the model {one['latency_ms']:.1f} ms as planned: "
                f"{one['tokens_per_second']:.2f} tokens/s"
            )
    return int(found["wrong"] > 0 or not same)


def _decode(path: str, cycles: int, rank: int, mhz: float | None) -> dict[str, Any]:
    """What a token takes on one engine whose memory never waits: this layer as simulated, the model as planned."""
    from anytune.fpga import plan
    from anytune.fpga.boards import BOARDS
    from anytune.gguf import GGUF

    clock = mhz or BOARDS["ecp5-85"].mhz
    with GGUF.open(path) as file:
        model = plan.decode(plan.linears(file, 1, rank), rank, 1, clock, float("inf"))
    kept = ("cycles", "occupancy", "latency_ms", "tokens_per_second")
    return {"mhz": clock, "layer_ms": cycles / clock / 1e3, **{key: model[key] for key in kept}}


@fpga.command(
    cls=Command,
    short_help="Export the designs as Verilog.",
    example="""
    anytune fpga export -o rtl/
    cd rtl && iverilog -o sim anytune_engine.v testbench.v && vvp sim
""",
)
@click.option("-o", "--output", required=True, metavar="FOLDER", help="The folder to create.")
@force_option
@json_option
def export(output: str, as_json: bool) -> int:
    """Write the engine (AXI4-Stream and AXI4-Lite) and the other cores as Verilog, with a testbench and a manual."""
    from anytune.fpga.export import export as write
    from anytune.units import bytes_text

    files = write(output.rstrip("/") or output, forced())
    if as_json:
        print_json({"path": output, "files": files})
    else:
        click.echo("\n".join(f"{name}: {bytes_text(size)}" for name, size in files.items()))
    return 0


@fpga.command(
    cls=Command,
    short_help="Synthesize, place and route: cells, clock, the slowest path.",
    example="""
    anytune fpga route --board ecp5-85
    anytune fpga route dequantizer --seeds 1,2,3 --operand-registers -o routed.json
""",
    renamed={"--device": "--board", "--megahertz": "--mhz", "--save": "-o"},
)
@click.argument("core", default="engine")
@click.option("--board", type=click.Choice(["ecp5-85"]), default="ecp5-85", show_default=True, help="The board.")
@click.option("--grade", type=click.IntRange(6, 8), default=8, show_default=True, help="The chip's speed grade.")
@click.option(
    "--mhz",
    "megahertz",
    type=click.FloatRange(10, 500),
    default=150,
    show_default=True,
    metavar="MHZ",
    help="Target clock of the router.",
)
@click.option(
    "--seeds", default="1", show_default=True, metavar="N,…", help="Seeds of the placement; the median counts."
)
@click.option(
    "--operand-registers",
    "operands",
    is_flag=True,
    help="Also move the registers before multipliers into them; those after them always are.",
)
@click.option("--work", metavar="FOLDER", help="Keep netlist, logs, reports and placement here.")
@click.option("-o", "--output", metavar="FILE", help="Also write the result as JSON.")
@force_option
@json_option
def route(
    core: str,
    board: str,
    grade: int,
    megahertz: float,
    seeds: str,
    operands: bool,
    work: str | None,
    output: str | None,
    as_json: bool,
) -> int:
    """Route a core (engine, dequantizer, quantizer, quantizer_q8_0) with Yosys and nextpnr; the engine takes long."""
    import json

    from anytune.files import atomic_write
    from anytune.fpga import routing

    try:
        numbers = [int(seed) for seed in seeds.split(",")]
    except ValueError:
        raise UserError(f"--seeds takes comma-separated numbers, not {seeds!r}.") from None
    routing.core(core)
    check_output(output, forced())
    with tempfile.TemporaryDirectory(prefix="anytune-route-") as scratch:
        folder = Path(work or scratch).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        found = routing.route(
            core,
            folder,
            routing.Settings(board, grade, megahertz, operands=operands),
            numbers,
            (lambda text: None) if as_json else click.echo,
        )
    if output:
        with atomic_write(output, "w") as file:
            json.dump(found, file, indent=1)
    if as_json:
        print_json(found)
    else:
        click.echo(_report(found))
    return 0


def _report(found: dict[str, Any]) -> str:
    run = found["runs"][0]
    lines = [
        f"{found['median_megahertz']} MHz, the median of {len(found['runs'])}; "
        + ", ".join(f"{used} of {of} {name}" for name, (used, of) in run["used"].items())
    ]
    spent: dict[str, float] = {}
    for step in run["worst_path"]:
        spent[step["what"]] = spent.get(step["what"], 0) + step["ns"]
    if run["worst_path"]:
        ends = run["worst_path"][0]["from"], run["worst_path"][-1]["to"]
        lines.append(
            f"slowest path: {ends[0]} to {ends[1]}: " + ", ".join(f"{what} {ns:.1f} ns" for what, ns in spent.items())
        )
    return "\n".join(lines)


fpga.add_command(fpga_plan.plan)
