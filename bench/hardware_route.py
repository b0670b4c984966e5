"""A core routed on the ECP5-85 with three seeds: clocks, cells, the slowest path. Yosys and nextpnr, CPU time stated.

    python bench/hardware_route.py engine
    python bench/hardware_route.py dequantizer --aim 220 --operand-registers
    python bench/hardware_route.py engine --from a.json b.json     # runs that `anytune fpga route --save` left

The result is bench/results/hardware_CORE.json; the median of the seeds counts.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import common

from anytune.fpga import routing

ASKED = {"engine": (125.0, 45_000), "dequantizer": (180.0, None)}  # MHz, LUTs


def joined(paths: list[Path]) -> dict[str, Any]:
    """Several results of the same netlist and settings as one."""
    each = [json.loads(path.read_text("utf-8")) for path in paths]
    runs = [run for one in each for run in one["runs"]]
    if any(one[key] != each[0][key] for one in each for key in ("core", "settings", "tools")) or any(
        one["synthesis"]["cells"] != each[0]["synthesis"]["cells"] for one in each
    ):
        raise SystemExit("these runs are not of one netlist with the same settings")
    clocks = sorted(run["megahertz"] for run in runs)
    return {**each[0], "runs": runs, "median_megahertz": clocks[(len(clocks) - 1) // 2]}


def main() -> None:
    options = common.parser(__doc__)
    options.add_argument("core")
    options.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    options.add_argument("--aim", type=float, default=150, help="what the router aims at, MHz")
    options.add_argument("--operand-registers", action="store_true", help="as of `anytune fpga route`")
    options.add_argument("--from", dest="files", type=Path, nargs="+", help="put kept runs together instead")
    args = options.parse_args()
    before = common.machine()
    if args.files:
        found = joined(args.files)
    else:
        with tempfile.TemporaryDirectory(prefix="anytune-route-") as folder:
            found = routing.route(
                args.core,
                Path(folder),
                routing.Settings(megahertz=args.aim, operands=args.operand_registers),
                args.seeds,
                print,
            )
    clock, luts = ASKED.get(args.core, (None, None))
    used = max(run["used"]["TRELLIS_COMB"][0] for run in found["runs"])
    common.save(
        "hardware_route",
        args,
        before,
        f"hardware_{args.core}",
        luts=used,
        clock_holds=None if clock is None else found["median_megahertz"] >= clock,
        luts_hold=None if luts is None else used <= luts,
        **found,
    )


if __name__ == "__main__":
    main()
