"""An ECP5 netlist as Yosys writes it in JSON: block RAMs take over the registers behind them.

Yosys does not use a block RAM's output registers. Where every bit that a port reads goes to a plain register on the
same clock and nowhere else, the register is what the RAM has inside: 0.3 ns from the clock instead of 5.
"""

from __future__ import annotations

import collections


def _plain(cell: dict, clock: object) -> bool:
    """A register without enable or reset, on the rising edge of `clock`."""
    p, c = cell["parameters"], cell["connections"]
    always = p.get("CEMUX", "1") == "1" or c.get("CE", ["1"]) == ["1"]
    kept = c.get("LSR", ["0"]) in (["0"], []) or p.get("LSRMUX") == "0"
    return (cell["type"] == "TRELLIS_FF" and c["CLK"] == [clock] and p.get("CLKMUX", "CLK") == "CLK" and always and kept
            and p.get("SD", "1") in ("1", "0"))


def absorb(module: dict) -> int:
    """Move registers into the block RAMs of a module (changed in place); the number of ports that got one."""
    cells, readers = module["cells"], collections.defaultdict(list)
    for name, cell in cells.items():
        for port, bits in cell["connections"].items():
            if cell["port_directions"].get(port) == "input":
                for bit in bits:
                    readers[bit].append((name, port))
    outside = {bit for port in module["ports"].values() for bit in port["bits"]}
    done = 0
    for cell in [c for c in cells.values() if c["type"] == "DP16KD"]:
        for side in "AB":
            pins = [pin for pin in cell["connections"] if pin.startswith(f"DO{side}")
                    and any(readers[bit] for bit in cell["connections"][pin])]
            found = _registers(cells, readers, outside, cell, pins, cell["connections"][f"CLK{side}"][0])
            if not pins or found is None or cell["parameters"].get(f"REGMODE_{side}", "NOREG") != "NOREG":
                continue
            for pin, name in zip(pins, found):
                cell["connections"][pin] = cells.pop(name)["connections"]["Q"]
            cell["parameters"][f"REGMODE_{side}"] = "OUTREG"
            cell["connections"][f"OCE{side}"] = ["1"]
            cell["port_directions"][f"OCE{side}"] = "input"
            done += 1
    return done


def _registers(cells: dict, readers: dict, outside: set, ram: dict, pins: list, clock: object) -> list[str] | None:
    """The register behind each pin, if they all have one that can move."""
    found = []
    for pin in pins:
        bits = ram["connections"][pin]
        if len(bits) != 1 or bits[0] in outside or len(readers[bits[0]]) != 1:
            return None
        name, port = readers[bits[0]][0]
        if port != "DI" or name not in cells or not _plain(cells[name], clock):
            return None
        found.append(name)
    return found
