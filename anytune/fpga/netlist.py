"""An ECP5 netlist as Yosys writes it in JSON: block RAMs and multipliers take over the registers around them.

Yosys does not use the registers inside of these blocks. Where every bit of an output goes to a plain register on the
same clock and nowhere else, that register is the one inside, whose data comes within a nanosecond. Where every bit of
both of a multiplier's operands comes from a plain register, its own input registers take what those take.
"""

from __future__ import annotations

import collections


def absorb(module: dict, operands: bool = False) -> dict[str, int]:
    """Move registers into the blocks of a module (changed in place); how many outputs of each kind got one. operands:
    those in front of multipliers as well."""
    cells, readers = module["cells"], collections.defaultdict(list)
    for name, cell in cells.items():
        for port, bits in cell["connections"].items():
            if cell["port_directions"].get(port) == "input":
                for bit in bits:
                    readers[bit].append((name, port))
    pads = {bit for port in module["ports"].values() for bit in port["bits"]}
    drivers = {cell["connections"]["Q"][0]: name for name, cell in cells.items() if cell["type"] == "TRELLIS_FF"}
    done = {"DP16KD": 0, "MULT18X18D": 0, "MULT18X18D operands": 0}
    for name, cell in list(cells.items()):
        if cell["type"] == "DP16KD":
            wide = int(cell["parameters"]["DATA_WIDTH_A"], 2) == 36  # both sides give halves of one word
            for sides in ("AB",) if wide else ("A", "B"):
                # a side that never writes: what Yosys left at its data is in the way
                if not wide and cell["connections"].get(f"WE{sides}") == ["0"]:
                    for pin in [pin for pin in cell["connections"] if pin.startswith(f"DI{sides}")]:
                        cell["connections"][pin] = ["0"]
                done["DP16KD"] += _output(
                    cells,
                    readers,
                    pads,
                    cell,
                    tuple(f"DO{side}" for side in sides),
                    cell["connections"][f"CLK{sides[-1]}"][0],
                    {f"REGMODE_{side}": "OUTREG" for side in sides},
                    tuple(f"OCE{side}" for side in sides),
                )
        elif cell["type"] == "MULT18X18D":
            done["MULT18X18D"] += _output(
                cells, readers, pads, cell, ("P",), None, {"REG_OUTPUT_CLK": "CLK0"}, ("CE0",), {"RST0": "0"}
            )
            if operands:
                done["MULT18X18D operands"] += _operands(cells, readers, drivers, pads, name)
    return done


def _output(
    cells: dict,
    readers: dict,
    pads: set,
    block: dict,
    prefixes: tuple[str, ...],
    clock: object,
    parameters: dict[str, str],
    enables: tuple[str, ...],
    tied: dict[str, object] | None = None,
) -> bool:
    """Move the registers behind the pins PREFIX0, PREFIX1, … into `block`, if each that is read has one that can, and
    all have the same enable, which `enables` then get."""
    if any(block["parameters"].get(name, "NOREG") not in ("NOREG", "NONE") for name in parameters):
        return False
    pins = [
        pin
        for pin, bits in block["connections"].items()
        if pin.rstrip("0123456789") in prefixes and any(readers[bit] for bit in bits)
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
    enabled = {_enable(cells[name]) for name in found}
    if len(enabled) != 1 or len(clocks) != 1:
        return False
    for pin, name in zip(pins, found):
        block["connections"][pin] = cells.pop(name)["connections"]["Q"]
    tied = {**(tied or {}), **dict.fromkeys(enables, enabled.pop())}
    if clock is None:
        tied["CLK0"] = clocks.pop()
    block["parameters"].update(parameters)
    for pin, value in tied.items():
        block["connections"][pin], block["port_directions"][pin] = [value], "input"
    return True


def _operands(cells: dict, readers: dict, drivers: dict, pads: set, multiplier: str) -> bool:
    """Move the registers of both operands of a multiplier with an output register into it; others may read them too."""
    block = cells[multiplier]
    pins = [
        pin
        for pin, bits in block["connections"].items()
        if pin.rstrip("0123456789") in ("A", "B") and isinstance(bits[0], int)
    ]
    names = [drivers.get(block["connections"][pin][0]) for pin in pins]
    found = [cells.get(name) for name in names]
    clock = block["connections"].get("CLK0")
    if any(
        cell is None or not _plain(cell) or _enable(cell) != "1" or cell["connections"]["CLK"] != clock
        for cell in found
    ) or block["connections"].get("CE0") != ["1"]:
        return False
    for pin, name, cell in zip(pins, names, found):
        bit, before = block["connections"][pin][0], cell["connections"]["DI"]
        block["connections"][pin] = before
        readers[before[0]].append((multiplier, pin))
        readers[bit].remove((multiplier, pin))
        if not readers[bit] and bit not in pads:
            readers[before[0]].remove((name, "DI"))
            del cells[name]
    block["parameters"].update({"REG_INPUTA_CLK": "CLK0", "REG_INPUTB_CLK": "CLK0"})
    return True


def _enable(register: dict) -> object:
    """The net of a register's enable; "1": it has none."""
    always = register["parameters"].get("CEMUX", "1").strip() == "1"
    return "1" if always else register["connections"].get("CE", ["1"])[0]


def _plain(cell: dict) -> bool:
    """A register on the rising edge, without a reset in use."""
    p, c = cell["parameters"], cell["connections"]
    kept = c.get("LSR", ["0"]) in (["0"], [])
    return (
        cell["type"] == "TRELLIS_FF"
        and p.get("CLKMUX", "CLK") == "CLK"
        and kept
        and p.get("CEMUX", "1").strip() in ("1", "CE")
    )
