"""A netlist of ECP5 cells, as routing.synthesize writes it, run cycle by cycle: what synthesis and netlist.py made of a
design is the design, and how many of its wires change in a cycle.

Cells are Lattice's as Yosys' models have them (LUT4, CCU2C, PFUMX, L6MUX21, TRELLIS_FF, TRELLIS_DPR16X4), and the block
RAMs and multipliers as the ECP5's manuals say. One clock, no delays: a wire that settles after several changes counts
one. What is unknown in hardware after power is on is 0 here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from anytune.errors import UserError

LUT, CARRY, MUX, SMALL, PRODUCT = range(5)  # combinational kinds, see `_settle`
SIGNED = ("SIGNEDA", "SIGNEDB")


class Netlist:
    """A top module's `inputs` and `outputs` by name; `step` runs cycles. toggles: of each wire, counted while `count`.

    module: modules[top] of Yosys' JSON, flat. Raises UserError for cells that it does not know.
    """

    def __init__(self, module: dict):
        bits = [bit for cell in module["cells"].values() for pins in cell["connections"].values() for bit in pins]
        bits += [bit for port in module["ports"].values() for bit in port["bits"]]
        self.at = {"0": 0, "1": 1, "x": 0, "z": 0}
        for bit in bits:
            self.at.setdefault(bit, len(self.at) - 2)
        self.values = np.zeros(max(self.at.values()) + 1, np.uint8)
        self.values[1] = 1
        self.ports = {name: np.array([self.at[bit] for bit in port["bits"]]) for name, port in module["ports"].items()}
        self.clocks: set[int] = set()
        self.registers: list[list[int]] = []  # d, q, enable, reset, what it resets to
        self.combinational: list[tuple[list[int], list[int], int, list[int]]] = []  # reads, drives, kind, row
        self.small: list[list[int]] = []  # 4 data, 4 write address, enable
        self.products: list[list[int]] = []  # 18 a, 18 b, 36 p, signed a, signed b, registers in, out
        self.rams: list[list[int]] = []  # see _ram
        self.driven: dict[int, str] = {}  # wire -> the cell that drives it
        for name, cell in module["cells"].items():
            self._add(name, cell)
        if len(self.clocks) != 1:
            raise UserError(f"The netlist has {len(self.clocks)} clocks; one can be run.")
        self.rows = self._ordered()
        self.tables = [
            np.array(rows or [[0] * width], np.int64)
            for rows, width in ((self.registers, 5), (self.small, 9), (self.products, 76), (self.rams, 106))
        ]
        self.sizes = np.array([len(self.registers), len(self.small), len(self.products), len(self.rams)])
        self.states = (
            np.zeros((max(1, len(self.small)), 16), np.uint8),
            np.zeros((max(1, len(self.products)), 2), np.int64),
            np.zeros((max(1, len(self.rams)), 18432), np.uint8),
            np.zeros((max(1, len(self.rams)), 2, 36), np.uint8),
        )
        self.toggles, self.cycles = np.zeros(len(self.values), np.int64), 0
        for _, q, _, _, to in self.registers:
            self.values[q] = to

    def set(self, name: str, value: int) -> None:
        """An input from now on."""
        wires = self.ports[name]
        self.values[wires] = [value >> i & 1 for i in range(len(wires))]

    def get(self, name: str) -> int:
        """A port as it is, after `settle` or `step`."""
        return int.from_bytes(np.packbits(self.values[self.ports[name]], bitorder="little").tobytes(), "little")

    def settle(self) -> None:
        """Let inputs reach what they drive, without a clock edge."""
        _settle(self.values, self.rows, self.states[0])

    def step(self, cycles: int = 1, count: bool = False) -> None:
        """Clock edges, inputs as they are set; outputs are settled afterwards."""
        _run(self.values, self.rows, *self.tables, self.sizes, *self.states, self.toggles, cycles, count)
        self.cycles += cycles * count

    # ---- reading the netlist

    def _add(self, name: str, cell: dict) -> None:
        kind, pins = cell["type"], {k: [self.at[b] for b in v] for k, v in cell["connections"].items()}
        parameters = cell["parameters"]
        one = {k: v[0] for k, v in pins.items() if v}
        for pin, wires in pins.items():
            if cell["port_directions"].get(pin) == "output":
                self.driven.update(dict.fromkeys(wires, name))
        if kind == "TRELLIS_FF":
            self._register(one, parameters)
        elif kind == "LUT4":
            self._comb(LUT, [one.get(k, 0) for k in "ABCD"], [one["Z"]], [int(parameters["INIT"], 2)])
        elif kind == "CCU2C":
            inits = [int(parameters[k], 2) for k in ("INIT0", "INIT1")]
            inject = [parameters[k].strip() == "YES" for k in ("INJECT1_0", "INJECT1_1")]
            reads = [one.get(f"{k}{i}", 0) for i in (0, 1) for k in "ABCD"] + [one.get("CIN", 0)]
            self._comb(CARRY, reads, [one.get(k, -1) for k in ("S0", "S1", "COUT")], [*inits, *inject])
        elif kind in ("PFUMX", "L6MUX21"):
            low, high, by = ("BLUT", "ALUT", "C0") if kind == "PFUMX" else ("D0", "D1", "SD")
            self._comb(MUX, [one[low], one[high], one[by]], [one["Z"]], [])
        elif kind == "TRELLIS_DPR16X4":
            self.clocks.add(one["WCK"])
            self._comb(SMALL, pins["RAD"], pins["DO"], [len(self.small)])
            self.small.append([*pins["DI"], *pins["WAD"], one["WRE"]])
        elif kind == "MULT18X18D":
            self._product(one, parameters)
        elif kind == "DP16KD":
            self.rams.append(self._ram(one, parameters))
        elif kind not in ("$scopeinfo",):
            raise UserError(f"The netlist has a {kind} ({name}), which cannot be run.")

    def _register(self, one: dict[str, int], p: dict[str, Any]) -> None:
        enable = {"1": 1, "0": 0}.get(p.get("CEMUX", "1").strip(), one.get("CE", 1))
        if p.get("CEMUX", "1").strip() == "INV" or p.get("CLKMUX", "CLK") != "CLK" or p.get("SRMODE") == "ASYNC":
            raise UserError("The netlist has registers with inverted or asynchronous pins, which cannot be run.")
        self.clocks.add(one["CLK"])
        self.registers.append([one.get("DI", 0), one["Q"], enable, one.get("LSR", 0), p.get("REGSET") == "SET"])

    def _comb(self, kind: int, reads: list[int], drives: list[int], row: list[int]) -> None:
        self.combinational.append((reads, drives, kind, row))

    def _product(self, one: dict[str, int], p: dict[str, Any]) -> None:
        inside = [p.get(f"REG_{k}_CLK", "NONE") != "NONE" for k in ("INPUTA", "INPUTB", "OUTPUT")]
        if inside[0] != inside[1] or not inside[2]:
            raise UserError("The netlist has a multiplier without a register behind it, which cannot be run.")
        self.clocks.add(one["CLK0"])
        self.products.append(
            [
                *(one.get(f"A{i}", 0) for i in range(18)),
                *(one.get(f"B{i}", 0) for i in range(18)),
                *(one.get(f"P{i}", -1) for i in range(36)),
                *(one.get(k, 0) for k in SIGNED),
                inside[0],
                one.get("CE0", 1),
            ]
        )

    def _ram(self, one: dict[str, int], p: dict[str, Any]) -> list[int]:
        """Width; 14 address wires, 36 data, write enable, enable of port A; 14 address wires, 36 data, enable, enable
        of the register, whether there is one, of port B. Port A writes, port B reads, as the designs have it."""
        width = int(p["DATA_WIDTH_A"], 2)
        if int(p["DATA_WIDTH_B"], 2) != width or one["WEB"] != 0:
            raise UserError("The netlist has a block RAM of two widths or of two writers, which cannot be run.")
        self.clocks.update((one["CLKA"], one["CLKB"]))
        wide = width == 36
        data = [one.get(f"DIA{i}", 0) for i in range(18)] + [one.get(f"DIB{i}", 0) if wide else 0 for i in range(18)]
        out = [one.get(f"DOA{i}", -1) for i in range(18)] * wide + [one.get(f"DOB{i}", -1) for i in range(18)]
        return [
            width,
            *(one.get(f"ADA{i}", 0) for i in range(14)),
            *data,
            one.get("WEA", 0),
            one.get("CEA", 1),
            *(one.get(f"ADB{i}", 0) for i in range(14)),
            *(out + [-1] * 36)[:36],
            one.get("CEB", 1),
            one.get("OCEB", 1),
            p.get("REGMODE_B") == "OUTREG",
        ]

    def _ordered(self) -> np.ndarray:
        """Combinational cells so that each comes after those it reads: int64 [., 18] (kind, 9 reads, 4 drives, 4
        facts)."""
        driver = {wire: i for i, (_, drives, *_) in enumerate(self.combinational) for wire in drives if wire > 1}
        waits = [{driver[w] for w in reads if w in driver} for reads, *_ in self.combinational]
        readers: list[list[int]] = [[] for _ in waits]
        for i, before in enumerate(waits):
            for j in before:
                readers[j].append(i)
        left = [len(before) for before in waits]
        ready, order = [i for i, n in enumerate(left) if not n], []
        while ready:
            i = ready.pop()
            order.append(i)
            for j in readers[i]:
                left[j] -= 1
                if not left[j]:
                    ready.append(j)
        if len(order) != len(waits):
            raise UserError("The netlist has a loop of combinational cells.")
        rows = np.zeros((max(1, len(order)), 18), np.int64)
        rows[:, 0] = -1
        for at, i in enumerate(order):
            reads, drives, kind, facts = self.combinational[i]
            rows[at, 0], rows[at, 1 : 1 + len(reads)], rows[at, 10 : 10 + len(drives)] = kind, reads, drives
            rows[at, 14 : 14 + len(facts)] = facts
        return rows


@njit(cache=True)
def _lut(v, r, at, init):
    return init >> (v[r[at]] | v[r[at + 1]] << 1 | v[r[at + 2]] << 2 | v[r[at + 3]] << 3) & 1


@njit(cache=True)
def _settle(v, rows, small):
    for i in range(len(rows)):
        r = rows[i]
        if r[0] == LUT:
            v[r[10]] = _lut(v, r, 1, r[14])
        elif r[0] == CARRY:
            carry = np.int64(v[r[9]])
            for half in range(2):
                init, at = r[14 + half], 1 + 4 * half
                full = _lut(v, r, at, init)
                two = init >> (v[r[at]] | v[r[at + 1]] << 1) & 1
                injected = r[16 + half]
                if r[10 + half] >= 0:
                    v[r[10 + half]] = full ^ (0 if injected else carry)
                carry = carry if full else (0 if injected else two)
            if r[12] >= 0:
                v[r[12]] = carry
        elif r[0] == MUX:
            v[r[10]] = v[r[2]] if v[r[3]] else v[r[1]]
        elif r[0] == SMALL:
            word = small[r[14], v[r[1]] | v[r[2]] << 1 | v[r[3]] << 2 | v[r[4]] << 3]
            for j in range(4):
                v[r[10 + j]] = word >> j & 1


@njit(cache=True)
def _number(v, wires, signed):
    total = np.int64(0)
    for i in range(len(wires)):
        total |= np.int64(v[wires[i]]) << i
    return total - (np.int64(1) << len(wires)) if signed and v[wires[-1]] else total


@njit(cache=True)
def _clock(v, new, registers, small_at, products, rams, sizes, small, inside, words, outs):
    """One edge: `new` is what `v` becomes; every state is of what v was before."""
    for i in range(sizes[0]):
        r = registers[i]
        if v[r[3]]:
            new[r[1]] = r[4]
        elif v[r[2]]:
            new[r[1]] = v[r[0]]
    for i in range(sizes[1]):
        r = small_at[i]
        if v[r[8]]:
            at = v[r[4]] | v[r[5]] << 1 | v[r[6]] << 2 | v[r[7]] << 3
            small[i, at] = v[r[0]] | v[r[1]] << 1 | v[r[2]] << 2 | v[r[3]] << 3
    for i in range(sizes[2]):
        r = products[i]
        if v[r[75]]:
            a, b = _number(v, r[:18], v[r[72]]), _number(v, r[18:36], v[r[73]])
            if r[74]:
                a, inside[i, 0] = inside[i, 0], a
                b, inside[i, 1] = inside[i, 1], b
            product = a * b
            for j in range(36):
                if r[36 + j] >= 0:
                    new[r[36 + j]] = product >> j & 1
    for i in range(sizes[3]):
        _ram_edge(v, new, rams[i], words[i], outs[i])


@njit(cache=True)
def _ram_edge(v, new, r, words, out):
    width = r[0]
    low = (width > 1) + (width > 2) + (width > 4) + (width > 9) + (width > 18)  # address bits of a part of a word
    if r[105] and v[r[104]]:  # the register takes what the array gave before this edge
        out[1] = out[0]
    if v[r[103]]:
        at = 0
        for j in range(low, 14):
            at |= np.int64(v[r[53 + j]]) << (j - low)
        for j in range(width):
            out[0, j] = words[at * width + j]
    for j in range(36):
        if r[67 + j] >= 0:
            new[r[67 + j]] = out[1, j] if r[105] else out[0, j]
    if v[r[51]] and v[r[52]]:
        at = 0
        for j in range(low, 14):
            at |= np.int64(v[r[1 + j]]) << (j - low)
        for j in range(width):
            if width < 18 or v[r[1 + j // 9]]:  # words of 18 and 36 bits: low address wires enable nine bits each
                words[at * width + j] = v[r[15 + j]]


@njit(cache=True)
def _run(v, rows, registers, small_at, products, rams, sizes, small, inside, words, outs, toggles, cycles, count):
    _settle(v, rows, small)
    for _ in range(cycles):
        new = v.copy()
        _clock(v, new, registers, small_at, products, rams, sizes, small, inside, words, outs)
        _settle(new, rows, small)
        if count:
            for i in range(len(v)):
                toggles[i] += v[i] ^ new[i]
        v[:] = new
