"""How many wires of the engine change in a cycle: its synthesized netlist, run gate by gate on SmolLM2's weights.

    python bench/hardware_toggles.py

A product by rows and one by columns of 32 tokens and 64 x 256 weights of layer 0, activations and gradients random of a
trained model's kind. Every sum that leaves the netlist is compared with the twin's. anytune/fpga/energy.py holds the
figures of the array and the lanes: all changes, those of loading and waiting too, over the cycles in which squares
compute, as its products are counted.
"""

from __future__ import annotations

import collections
import json
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import common
import numpy as np
from hardware_pictures import PARTS

from anytune.fpga import driver, formats, routing, schedule
from anytune.fpga.cycles import SQUARE
from anytune.fpga.gates import Netlist
from anytune.fpga.twin import Twin
from anytune.gguf import GGUF

TENSOR, ROWS, COLUMNS, TOKENS = "blk.0.ffn_gate.weight", 64, 256, 32


def product(netlist: Netlist, direction: str, left: Any, w: formats.Matrix) -> dict[str, Any]:
    """Beats through the netlist with streams that never wait; toggles are counted from the first to the last beat."""
    (beats, groups), *more = driver.packets(direction, [left], [driver.Stored(w)], 0)
    assert not more
    wanted, found, sent, before = groups * driver.BEATS_OUT, [], 0, netlist.cycles
    while len(found) < wanted:
        netlist.set("s_axis_tvalid", sent < len(beats))
        netlist.set("s_axis_tdata", int(beats[min(sent, len(beats) - 1)]))
        netlist.settle()
        if netlist.get("m_axis_tvalid"):
            found.append(netlist.get("m_axis_tdata"))
        sent += sent < len(beats) and netlist.get("s_axis_tready")
        netlist.step(count=True)
        if netlist.cycles - before > 50_000:
            raise SystemExit("the netlist stalls")
    sums = driver.sums(np.array(found, "<u8"), groups)
    wrong = int((sums.view(np.uint32) != getattr(Twin(), direction)([(left, w)]).view(np.uint32)).sum())
    return {
        "direction": direction,
        "squares": schedule.count(direction, [schedule.Shape.of(w)]),
        "sums": sums.size,
        "that_differ": wrong,
        "cycles": netlist.cycles - before,
    }


def part_of(cell: str) -> str:
    """The part of the engine that a cell's name begins with."""
    found = re.match(r"engine\.([a-z]+)", cell)
    return found[1] if found and found[1] in PARTS else "control"


def shares(netlist: Netlist, computing: int) -> dict[str, dict[str, Any]]:
    """Changes of a wire by part: a cycle, and a cycle of the `computing` ones."""
    counts: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0])
    for wire, cell in netlist.driven.items():
        if wire > 1:
            kept = counts[part_of(cell)]
            kept[0], kept[1] = kept[0] + 1, kept[1] + int(netlist.toggles[wire])
    return {
        part: {
            "wires": wires,
            "toggles_per_wire_and_cycle": common.rounded(toggles / wires / netlist.cycles),
            "and_computing_cycle": common.rounded(toggles / wires / computing),
        }
        for part, (wires, toggles) in sorted(counts.items())
    }


def main() -> None:
    args = common.parser(__doc__).parse_args()
    before, start, rng = common.machine(), time.process_time(), np.random.default_rng(0)
    with GGUF.open(common.model_file(args.model)) as file:
        made = file.float32(TENSOR)[:ROWS, :COLUMNS]
    from anytune.gguf.encode import encode

    w = formats.matrix(encode(np.ascontiguousarray(made), "Q4_0"), "Q4_0")
    x = formats.q8_0((rng.standard_normal((TOKENS, COLUMNS)) * np.exp(rng.standard_normal(COLUMNS) / 2)).astype("f4"))
    y = formats.bf16((rng.standard_normal((TOKENS, ROWS)) * 1e-4).astype("f4"))
    with tempfile.TemporaryDirectory(prefix="anytune-gates-") as name:
        made = routing.synthesize("engine", Path(name), routing.Settings(), alone=False)
        module = json.loads((Path(name) / "top.json").read_text("utf-8"))["modules"]["top"]
    netlist = Netlist(module)
    for port in ("m_axis_tready", "s_axi_bready", "s_axi_rready"):
        netlist.set(port, 1)
    netlist.step(4)
    netlist.set("aresetn", 1)
    netlist.step(4)
    products = [product(netlist, direction, left, w) for direction, left in (("rows", x), ("columns", y))]
    found = shares(netlist, SQUARE * sum(row["squares"] for row in products))
    common.save(
        "hardware_toggles",
        args,
        before,
        tensor=TENSOR,
        type="Q4_0",
        cells=made["cells"],
        products=products,
        cycles=netlist.cycles,
        parts=found,
        cpu_seconds=round(time.process_time() - start, 1),
        holds=not any(row["that_differ"] for row in products),
    )


if __name__ == "__main__":
    main()
