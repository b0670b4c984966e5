"""The engine: packets of 64-bit beats in, float32 sums out. See docs/hardware.md for the packets and the flow.

A square passes three stages, 128 cycles each and overlapping: the gradients are scaled (by columns only), its codes are
read into the array, its sums are taken over by the lanes. Cycles, counted from the read of a square's first code:

    0   Weights.step                   31  Tile.at, for the first token      45  its sum of column 0, Lane.p
    4   Array.weights                  36  Tile.out                          44  Lane.load, Lane.sw
    36  Array.latch                    37  Array.activations                 66  Lane.out
"""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Elaboratable, Module, Mux, Signal

from anytune.fpga.rtl.array import Array
from anytune.fpga.rtl.lane import Lane
from anytune.fpga.rtl.packets import COMMAND, Packets
from anytune.fpga.rtl.parts import copies, late, register
from anytune.fpga.rtl.prescale import Prescale
from anytune.fpga.rtl.results import GROUPS, Results
from anytune.fpga.rtl.tile import Tile
from anytune.fpga.rtl.weights import Weights

COLUMN, FIRST, LAST, HIGH, WHOLE, ONES = range(6)


class Engine(Elaboratable):
    """Streams `in_*` and `out_*` as AXI4-Stream has them. `busy`; `bad`: a packet of no kind came; `square`: one is
    done; `starved`: it waits for a packet; `blocked`: for room behind."""

    def __init__(self) -> None:
        self.in_valid, self.in_ready, self.in_data = Signal(), Signal(), Signal(64)
        self.out_valid, self.out_ready, self.out_data, self.out_last = Signal(), Signal(), Signal(64), Signal()
        self.busy, self.bad, self.square, self.starved, self.blocked = (Signal() for _ in range(5))

    def ports(self) -> list[Signal]:
        return [value for value in vars(self).values() if isinstance(value, Signal)]

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.packets = self.packets = packets = Packets()
        m.submodules.weights = self.weights = Weights()
        m.submodules.tile = self.tile = Tile()
        m.submodules.array = self.array = Array()
        m.submodules.results = self.results = results = Results()
        for name in ("in_valid", "in_data"):
            m.d.comb += getattr(packets, name).eq(getattr(self, name))
        m.d.comb += [self.in_ready.eq(packets.in_ready), self.bad.eq(packets.bad), results.out_ready.eq(self.out_ready)]
        for name in ("out_valid", "out_data", "out_last"):
            m.d.comb += getattr(self, name).eq(getattr(results, name))
        packets.connect(m, self.weights, self.tile)
        self._take(m)
        self._scale(m)
        self._read(m)
        self._lanes(m)
        m.d.comb += self.busy.eq(packets.busy | results.busy)
        return m

    def _take(self, m: Module) -> None:
        """The next square, when its first stage is free."""
        packets = self.packets
        command, valid, taken = Signal(COMMAND, reset_less=True), Signal(), Signal(3)
        slot = taken[:2]
        with m.If(~valid & packets.ready):
            m.d.sync += [command.eq(packets.command), valid.eq(1)]
        m.d.comb += packets.fetch.eq(~valid & packets.ready)
        mode, column, empty = Signal(), command[COLUMN], Signal()
        self.mode = mode  # the direction of what is in the stages; it changes between runs
        self.a_run, self.a_step, self.a_command, self.a_slot = Signal(), Signal(7), Signal(COMMAND), Signal(2)
        self.b_run, self.b_step, self.b_command, self.b_slot = Signal(), Signal(7), Signal(COMMAND), Signal(2)
        waiting, w_command, w_slot = Signal(), Signal(COMMAND), Signal(2)
        a_ends, b_ends, take_a, take_b, ready = (Signal() for _ in range(5))
        room = register(m, self.results.reserved < GROUPS)
        may = valid & ((mode == column) | empty) & (~command[LAST] | room)
        m.d.comb += [
            a_ends.eq(self.a_run & (self.a_step == 127)),
            b_ends.eq(self.b_run & (self.b_step == 127)),
            empty.eq(taken == packets.done),
            ready.eq(waiting & (~self.b_run | b_ends)),
            take_a.eq(may & column & (~self.a_run | a_ends)),
            take_b.eq(may & ~column & ~self.a_run & ~waiting & (~self.b_run | b_ends)),
            self.results.reserve.eq((take_a | take_b) & command[LAST]),
            self.starved.eq(~valid & ~self.a_run & ~self.b_run & (packets.begun == packets.done)),
            self.blocked.eq(valid & command[LAST] & ~room),
        ]
        with m.If(take_a | take_b):
            m.d.sync += [valid.eq(0), mode.eq(column), taken.eq(taken + 1)]
        with m.If(take_a):
            m.d.sync += [self.a_run.eq(1), self.a_step.eq(0), self.a_command.eq(command), self.a_slot.eq(slot)]
        with m.Elif(self.a_run):
            m.d.sync += [self.a_step.eq(self.a_step + 1), self.a_run.eq(~a_ends)]
        with m.If(a_ends):
            m.d.sync += [w_command.eq(self.a_command), w_slot.eq(self.a_slot)]
        m.d.sync += waiting.eq(a_ends | (waiting & ~ready))
        with m.If(ready | take_b):
            m.d.sync += [
                self.b_run.eq(1),
                self.b_step.eq(0),
                self.b_command.eq(Mux(ready, w_command, command)),
                self.b_slot.eq(Mux(ready, w_slot, slot)),
            ]
        with m.Elif(self.b_run):
            m.d.sync += [self.b_step.eq(self.b_step + 1), self.b_run.eq(~b_ends)]

    def _scale(self, m: Module) -> None:
        """Gradients of a square's 32 inputs, token after token, eight at a time, back into tile memory."""
        m.submodules.prescale = pre = Prescale()
        quarter, token = self.a_step[:2], self.a_step[2:]
        read, pre_at = self.tile.READ, Cat(quarter, self.a_slot)
        y = Mux(late(m, quarter[0], read), self.tile.out[128:], self.tile.out[:128])
        m.d.comb += [
            pre.y.eq(register(m, y)),
            pre.d.eq(self.weights.pre),
            pre.start.eq(late(m, quarter == 0, read + 1)),
            self.weights.pre_at.eq(late(m, pre_at, read - 1)),
        ]
        depth = read + 1 + pre.DEPTH
        here = late(m, Cat(quarter, token, self.a_slot), depth)
        m.d.comb += [
            self.tile.put_scaled.eq(late(m, self.a_run, depth, reset=True)),
            self.tile.step.eq(pre.e),
            self.tile.scaled_part.eq(here[:2]),
            self.tile.scaled_at.eq(here[2:]),
            self.tile.scaled_data.eq(pre.q),
        ]

    def _read(self, m: Module) -> None:
        """Codes of a square into the array, and 31 cycles later the tokens that they are for."""
        weights, tile, array = self.weights, self.tile, self.array
        m.d.comb += [
            weights.step.eq(self.b_step[:5]),
            weights.sub.eq(self.b_step[5:]),
            weights.read_slot.eq(self.b_slot),
            weights.columns.eq(self.b_command[COLUMN]),
        ]
        ones = late(m, self.b_command[ONES], weights.READ)
        m.d.comb += [
            array.weights.eq(Mux(ones, 0x11111111, weights.out)),
            array.start.eq(late(m, self.b_step[:5] == 0, weights.READ)),
        ]
        self.x_run, self.x_step, self.x_command, self.x_slot = Signal(), Signal(7), Signal(COMMAND), Signal(2)
        with m.If(late(m, self.b_run & (self.b_step == 0), 30, reset=True)):
            m.d.sync += [
                self.x_run.eq(1),
                self.x_step.eq(0),
                self.x_command.eq(self.b_command),
                self.x_slot.eq(self.b_slot),
            ]
        with m.Elif(self.x_run):
            m.d.sync += [self.x_step.eq(self.x_step + 1), self.x_run.eq(self.x_step != 127)]
        m.d.comb += [self.packets.release.eq(self.x_run & (self.x_step == 127)), self.square.eq(self.packets.release)]
        token, block = self.x_step[:5], self.x_command[ONES + 1 :]
        gradients = Cat(self.a_step[1], self.a_step[2:], self.a_command[ONES + 1 :])[: len(tile.at)]
        m.d.comb += [
            tile.at.eq(Mux(self.mode, gradients, Cat(token, block))),
            tile.from_scaled.eq(Cat(token, self.x_slot)),
            array.latch.eq(late(m, self.x_step[:5] == 0, 5)),
            array.whole.eq(late(m, self.x_command[WHOLE], 6)),
        ]
        data = [
            register(m, Mux(scaled, tile.scaled[i : i + 32], tile.out[i : i + 32]))
            for scaled, i in zip(copies(m, late(m, self.x_command[COLUMN], tile.READ - 1), 8), range(0, 256, 32))
        ]
        for r in range(32):
            m.d.comb += array.activations[r].eq(data[r // 4].word_select(r % 4, 8).as_signed())

    def _lanes(self, m: Module) -> None:
        tile, weights, command = self.tile, self.weights, self.x_command
        token, sub = self.x_step[:5], self.x_step[5:]
        where = Mux(command[COLUMN], Cat(token, self.x_slot), Cat(token, command[ONES + 1 :]))
        m.d.comb += [
            tile.scale_at.eq(late(m, where, 8)),
            tile.columns.eq(late(m, command[COLUMN], 8)),
            weights.lane_at.eq(late(m, Cat(token[:3], sub, self.x_slot), 9)),
        ]
        sw = register(m, Mux(late(m, command[COLUMN], 12), Const(127 << 16, 25), weights.lane))
        load = late(m, self.x_run & (token == 0), 13)
        valid = late(m, self.x_run, 14, reset=True)
        rest = late(m, Cat(command[FIRST], command[LAST], self.x_step, command[HIGH]), 14)
        scale = tile.scale
        for c in range(8):
            m.submodules[f"lane{c}"] = lane = Lane()
            m.d.comb += [
                lane.p.eq(self.array.sums[c]),
                lane.sa.eq(scale),
                lane.sw.eq(sw),
                lane.load.eq(load),
                lane.valid.eq(valid),
                lane.first.eq(rest[0]),
                lane.last.eq(rest[1]),
                lane.at.eq(rest[2:9]),
                lane.high.eq(rest[9]),
            ]
            self.results.connect(m, c, lane)
            scale, load, rest = register(m, scale), register(m, load), register(m, rest)
            valid = register(m, valid, reset=True)
