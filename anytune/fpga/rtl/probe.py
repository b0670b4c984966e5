"""A core between registers, to route it alone: ports need no pads, and every path has a register at each end."""

from __future__ import annotations

import functools
import operator

from amaranth.hdl import Cat, Elaboratable, Module, Signal

from anytune.fpga.rtl.parts import register


class Probe(Elaboratable):
    """core: a design with `ports()` and the names `OUTPUTS`. Inputs come out of one shift register, outputs are folded
    into one pin."""

    def __init__(self, core) -> None:
        self.core, self.i, self.o = core, Signal(name="i"), Signal(name="o")

    def ports(self) -> list[Signal]:
        return [self.i, self.o]

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.core = self.core
        ports = {port.name: port for port in self.core.ports()}
        ins = [port for name, port in ports.items() if name not in self.core.OUTPUTS]
        outs = [port for name, port in ports.items() if name in self.core.OUTPUTS]
        shift, at = Signal(sum(map(len, ins)), reset_less=True), 0
        m.d.sync += shift.eq(Cat(self.i, shift[:-1]))
        for port in ins:
            m.d.comb += port.eq(register(m, shift[at : at + len(port)]))
            at += len(port)
        level = list(register(m, Cat(*outs)))
        while len(level) > 1:
            level = [register(m, functools.reduce(operator.xor, level[i : i + 4])) for i in range(0, len(level), 4)]
        m.d.comb += self.o.eq(level[0])
        return m
