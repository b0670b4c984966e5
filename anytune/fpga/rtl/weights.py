"""Squares as they arrive: codes into diagonal banks, scales for the lanes and for the gradients.

Code (n, k) lies in bank (n + k) mod 8, so eight neighbours of a row, and eight of a column, are each in eight banks.
Slots hold squares: one is filled while others are used.
"""

from __future__ import annotations

from amaranth.hdl import Cat, Elaboratable, Module, Mux, Signal

from anytune.fpga.rtl.lane import SCALE
from anytune.fpga.rtl.parts import late, memory, register

SLOTS = 4


def turned(values: list, by, back: bool = False) -> list:
    """values[(i - by) mod 8] at i (back: (i + by)); by: 3 bits."""
    for bit in range(3):
        step = -(1 << bit) if back else 1 << bit
        values = [Mux(by[bit], values[(i - step) % 8], values[i]) for i in range(8)]
    return values


class Weights(Elaboratable):
    """Writing: `put` with `codes`, the 8 of row `row` from column 8 `group` on, in `slot`; `put_scales` with four
    `scales`, of rows 4 `four` on.
    Reading: `step` 0..31 of sub-tile `sub` of `read_slot`, by columns or by rows: READ cycles later `out` are the codes
    of 8 outputs. `pre_at` (slot, quarter): 2 cycles later `pre`, 8 scales. `lane_at` (slot, row): 3 later `lane`.
    """

    READ = 4

    def __init__(self) -> None:
        self.put, self.codes, self.row, self.group, self.slot = (Signal(n) for n in (1, 32, 5, 2, 2))
        self.put_scales, self.scales, self.four, self.scales_slot = (Signal(n) for n in (1, 4 * SCALE, 3, 2))
        self.step, self.sub, self.read_slot, self.columns = Signal(5), Signal(2), Signal(2), Signal()
        self.out = Signal(32)
        self.pre_at, self.pre = Signal(4), Signal(8 * SCALE)
        self.lane_at, self.lane = Signal(7), Signal(SCALE)

    def elaborate(self, platform) -> Module:
        m = Module()
        codes = [register(m, code) for code in turned([self.codes[4 * i : 4 * i + 4] for i in range(8)], self.row[:3])]
        put, at = register(m, self.put, reset=True), register(m, Cat(self.group, self.row, self.slot))
        found = []
        for j in range(8):
            read, write = memory(m, f"bank{j}", 4, SLOTS * 128)
            m.d.comb += [write.en.eq(put), write.addr.eq(at), write.data.eq(codes[j])]
            lane = Signal(3, name=f"column{j}")
            m.d.comb += lane.eq(j - self.step[:3])
            by_rows, by_columns = Cat(self.step[3:5], lane, self.sub), Cat(self.sub, self.step)
            m.d.comb += read.addr.eq(register(m, Cat(Mux(self.columns, by_columns, by_rows), self.read_slot)))
            found.append(register(m, read.data))
        m.d.comb += self.out.eq(Cat(*(register(m, v) for v in turned(found, late(m, self.step[:3], 3), back=True))))
        self._scales(m)
        return m

    def _scales(self, m: Module) -> None:
        """Two halves of 4 scales, each in two small memories: one is read for the gradients, one for the lanes."""
        wanted, parts = register(m, self.lane_at), []
        for half in range(2):
            en = self.put_scales & (self.four[0] == half)
            for name in ("pre", "lane"):
                read, write = memory(m, f"{name}{half}", 4 * SCALE, SLOTS * 4, domain="comb")
                m.d.comb += [
                    write.en.eq(en),
                    write.data.eq(self.scales),
                    write.addr.eq(Cat(self.four[1:], self.scales_slot)),
                ]
                if name == "pre":
                    m.d.comb += read.addr.eq(register(m, self.pre_at))
                    m.d.sync += self.pre[4 * SCALE * half : 4 * SCALE * (half + 1)].eq(read.data)
                else:
                    m.d.comb += read.addr.eq(wanted[3:])
                    parts.append(register(m, read.data))
        m.d.sync += self.lane.eq(Cat(*parts).word_select(register(m, wanted[:3]), SCALE))
