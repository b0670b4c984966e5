"""An ECP5 netlist as Yosys writes it in JSON: block RAMs and multipliers take over the registers behind them.

Yosys does not use the output registers of these blocks. Where every bit of an output goes to a plain register on the
same clock and nowhere else, the register is what the block has inside, whose data comes within a nanosecond.
"""

from __future__ import annotations

import collections


def absorb(module: dict) -> dict[str, int]:
    """Move registers into the blocks of a module (changed in place); how many outputs of each kind got one."""
    cells, readers = module["cells"], collections.defaultdict(list)
    for name, cell in cells.items():
        for port, bits in cell["connections"].items():
            if cell["port_directions"].get(port) == "input":
                for bit in bits:
                    readers[bit].append((name, port))
    pads = {bit for port in module["ports"].values() for bit in port["bits"]}
    done = {"DP16KD": 0, "MULT18X18D": 0}
    for cell in list(cells.values()):
        if cell["type"] == "DP16KD":
            for side in "AB":
                # a side that never writes, unless it has half of a wide word: what Yosys left at its data is in the way
                if cell["connections"].get(f"WE{side}") == ["0"] and int(cell["parameters"]["DATA_WIDTH_A"], 2) < 36:
                    for pin in [pin for pin in cell["connections"] if pin.startswith(f"DI{side}")]:
                        cell["connections"][pin] = ["0"]
                done["DP16KD"] += _output(
                    cells,
                    readers,
                    pads,
                    cell,
                    f"DO{side}",
                    cell["connections"][f"CLK{side}"][0],
                    {f"REGMODE_{side}": "OUTREG"},
                    {f"OCE{side}": "1"},
                )
        elif cell["type"] == "MULT18X18D":
            done["MULT18X18D"] += _output(
                cells, readers, pads, cell, "P", None, {"REG_OUTPUT_CLK": "CLK0"}, {"CE0": "1", "RST0": "0"}
            )
    return done


def _output(
    cells: dict,
    readers: dict,
    pads: set,
    block: dict,
    prefix: str,
    clock: object,
    parameters: dict[str, str],
    tied: dict[str, str],
) -> bool:
    """Move the registers behind the pins PREFIX0, PREFIX1, … into `block`, if each that is read has one that can."""
    pins = [
        pin
        for pin, bits in block["connections"].items()
        if pin.startswith(prefix) and pin[len(prefix) :].isdigit() and any(readers[bit] for bit in bits)
    ]
    found = []
    for pin in pins:
        bit = block["connections"][pin][0]
        if bit in pads or len(readers[bit]) != 1:
            return False
        name, port = readers[bit][0]
        if port != "DI" or name not in cells or not _plain(cells[name]):
            return False
        found.append(name)
    clocks = {cells[name]["connections"]["CLK"][0] for name in found} | ({clock} if clock is not None else set())
    if not found or len(clocks) != 1:
        return False
    for pin, name in zip(pins, found):
        block["connections"][pin] = cells.pop(name)["connections"]["Q"]
    if clock is None:
        tied = {**tied, "CLK0": clocks.pop()}
    block["parameters"].update(parameters)
    for pin, value in tied.items():
        block["connections"][pin], block["port_directions"][pin] = [value], "input"
    return True


def _plain(cell: dict) -> bool:
    """A register on the rising edge, without enable or reset in use."""
    p, c = cell["parameters"], cell["connections"]
    always = p.get("CEMUX", "1").strip() == "1" or c.get("CE", ["1"]) == ["1"]
    kept = c.get("LSR", ["0"]) in (["0"], [])
    return cell["type"] == "TRELLIS_FF" and p.get("CLKMUX", "CLK") == "CLK" and always and kept
