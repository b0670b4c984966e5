"""Packets from a stream of 64-bit beats: tiles into tile memory, squares into slots, commands to the stages.

The first beat of a packet says what follows: bits 1:0 are 1 activations, 2 gradients, 3 a square; bits 31:16 the block
of tile memory. Of a tile bits 47:32 count its blocks, and bit 2 says not to wait until all squares before it are
computed. Of a square bits 2 to 8: by columns, first and last of its sum, times 16, codes stand for themselves (else
n - 8), every code is 1, scales of 32 bits.

Activations: for four tokens a beat of four float16, then 32 bytes for each. Gradients: 32 bfloat16 for each token.
Squares: for four rows a beat of four float16 (two of float32, with 16 bits of fraction), then 16 bytes for each, as
ggml packs them; none if every code is 1.
"""

from __future__ import annotations

from amaranth.hdl import Array, Cat, Elaboratable, Module, Mux, Signal

from anytune.fpga.rtl.parts import half_to_scale, late, register
from anytune.fpga.rtl.tile import AT
from anytune.fpga.rtl.weights import SLOTS

COMMAND = 6 + AT - 5  # flags and a block of tile memory
HEAD, TILE, SQUARE = range(3)


class Packets(Elaboratable):
    """`ready`: a square has come whole, `command` is its; `fetch` takes it. `release`: the oldest slot is free.
    `begun`, `done`: squares so far, modulo 8."""

    def __init__(self) -> None:
        self.in_valid, self.in_ready, self.in_data = Signal(), Signal(), Signal(64)
        self.ready, self.command, self.fetch, self.release = Signal(), Signal(COMMAND), Signal(), Signal()
        self.begun, self.done, self.busy, self.bad = Signal(3), Signal(3), Signal(), Signal()

    def elaborate(self, platform) -> Module:
        m = Module()
        self._front(m)
        self.state, self.loaded = Signal(2), Signal(3)
        fetched = Signal(3)
        commands = Array([Signal(COMMAND, reset_less=True, name=f"command{i}") for i in range(SLOTS)])
        m.d.comb += [self.ready.eq(self.loaded != fetched), self.command.eq(commands[fetched[:2]])]
        with m.If(self.fetch):
            m.d.sync += fetched.eq(fetched + 1)
        with m.If(self.release):
            m.d.sync += self.done.eq(self.done + 1)
        self._head(m, commands)
        self._tile(m)
        self._square(m)
        self._write(m)
        m.d.comb += self.busy.eq(self.valid | (self.state != HEAD) | (self.begun != self.done))
        return m

    def connect(self, m: Module, weights, tile) -> None:
        """To what is written: created here, so that the ports are beside each other."""
        self.weights, self.tile = weights, tile

    def _front(self, m: Module) -> None:
        """Two beats of room, so that `in_ready` is a register."""
        self.valid, self.data, self.take = Signal(), Signal(64, reset_less=True), Signal()
        valid, data, comes = Signal(), Signal(64, reset_less=True), Signal()
        m.d.comb += [self.in_ready.eq(~valid), comes.eq(self.in_valid & ~valid)]
        with m.If(self.take | ~self.valid):
            m.d.sync += [self.valid.eq(valid | comes), self.data.eq(Mux(valid, data, self.in_data)), valid.eq(0)]
        with m.Elif(comes):
            m.d.sync += [data.eq(self.in_data), valid.eq(1)]

    def _head(self, m: Module, commands: Array) -> None:
        data, kind = self.data, self.data[:2]
        self.ones, self.wide, self.slot = Signal(), Signal(), Signal(2)
        self.gradients, self.word, self.left, self.place = Signal(), Signal(AT), Signal(AT + 1), Signal(5)
        self.four, self.part, self.scales_next, self.second = Signal(3), Signal(3), Signal(), Signal()
        self.accept = Signal()
        free = register(m, (self.begun - self.done)[:3] < SLOTS)
        idle = register(m, self.begun == self.done)
        bad = (kind == 0) | ((kind != 3) & (data[32:48] == 0))
        m.d.comb += self.accept.eq(self.valid & (self.state == HEAD) & Mux(kind == 3, free, bad | data[2] | idle))
        with m.If(self.accept):
            with m.If(kind == 3):
                m.d.sync += [
                    self.state.eq(SQUARE),
                    self.begun.eq(self.begun + 1),
                    self.slot.eq(self.begun[:2]),
                    commands[self.begun[:2]].eq(Cat(data[2:8], data[16:])),
                    self.ones.eq(data[7]),
                    self.wide.eq(data[8]),
                    self.scales_next.eq(1),
                    self.second.eq(0),
                    self.four.eq(0),
                    self.part.eq(0),
                ]
            with m.Elif(bad):
                m.d.sync += self.bad.eq(1)
            with m.Else():
                m.d.sync += [
                    self.state.eq(TILE),
                    self.gradients.eq(kind[1]),
                    self.place.eq(0),
                    self.word.eq(Mux(kind[1], data[16:] << 6, data[16:] << 5)),
                    self.left.eq(Mux(kind[1], data[32:48] << 6, data[32:48] << 5)),
                ]

    def _tile(self, m: Module) -> None:
        """Of activations, beat 0 of 17 is scales."""
        here, scales = self.valid & (self.state == TILE), ~self.gradients & (self.place == 0)
        self.in_tile = here
        codes, at = here & ~scales, Mux(self.gradients, self.place, self.place - 1)
        m.d.comb += [
            self.tile.put.eq(codes),
            self.tile.data.eq(self.data),
            self.tile.part.eq(at[:2]),
            self.tile.word.eq(self.word),
            self.tile.put_scales.eq(here & scales),
            self.tile.scales.eq(self.data),
            self.tile.scales_at.eq(self.word[2:]),
        ]
        with m.If(here):
            m.d.sync += self.place.eq(Mux(self.place == Mux(self.gradients, 15, 16), 0, self.place + 1))
            with m.If(codes & (at[:2] == 3)):
                m.d.sync += [self.word.eq(self.word + 1), self.left.eq(self.left - 1)]
                with m.If(self.left == 1):
                    m.d.sync += self.state.eq(HEAD)

    def _square(self, m: Module) -> None:
        """Scales go on at once; a beat of codes is held for two cycles, low nibbles first, while the next one waits."""
        here = self.valid & (self.state == SQUARE)
        self.held, self.half, self.final = Signal(), Signal(), Signal()
        self.codes, self.where = Signal(64, reset_less=True), Signal(8, reset_less=True)  # parity, row, slot
        ahead, next_one = Signal(), Signal(64 + 8 + 1, reset_less=True)
        scales, codes, moves = Signal(), Signal(), Signal()
        m.d.comb += [
            moves.eq(ahead & (~self.held | self.half)),
            scales.eq(here & self.scales_next),
            codes.eq(here & ~self.scales_next & (~ahead | moves)),
            self.take.eq(self.accept | self.in_tile | scales | codes),
        ]
        self.loads = Signal()
        m.d.comb += self.loads.eq(self.held & self.half & self.final)
        with m.If(scales):
            m.d.sync += self.second.eq(self.wide & ~self.second)
            with m.If(~self.wide | self.second):
                with m.If(self.ones):
                    m.d.sync += self.four.eq(self.four + 1)
                    with m.If(self.four == 7):
                        m.d.sync += self.state.eq(HEAD)
                        m.d.comb += self.loads.eq(1)
                with m.Else():
                    m.d.sync += self.scales_next.eq(0)
        with m.If(codes):
            m.d.sync += [
                self.part.eq(self.part + 1),
                next_one.eq(Cat(self.data, self.part, self.four, self.slot, Cat(self.part, self.four).all())),
            ]
            with m.If(self.part == 7):
                m.d.sync += [self.scales_next.eq(1), self.four.eq(self.four + 1)]
                with m.If(self.four == 7):
                    m.d.sync += self.state.eq(HEAD)
        m.d.sync += [
            ahead.eq(codes | (ahead & ~moves)),
            self.held.eq(moves | (self.held & ~self.half)),
            self.half.eq(self.held & ~self.half),
        ]
        with m.If(moves):
            m.d.sync += Cat(self.codes, self.where, self.final).eq(next_one)
        with m.If(self.loads):
            m.d.sync += self.loaded.eq(self.loaded + 1)
        self._scales(m, scales)

    def _scales(self, m: Module, scales: Signal) -> None:
        first = Signal(32 * 2, reset_less=True)
        with m.If(scales):
            m.d.sync += first.eq(self.data)
        halves = [half_to_scale(m, self.data[16 * i : 16 * i + 16])[0] for i in range(4)]
        words = [source[32 * i + 7 : 32 * i + 32] for source in (first, self.data) for i in range(2)]
        narrow, wide = Cat(*halves), late(m, Cat(*words), 2)
        whole = scales & (~self.wide | self.second)
        m.d.comb += [
            self.weights.put_scales.eq(late(m, whole, 2, reset=True)),
            self.weights.scales.eq(Mux(late(m, self.wide, 2), wide, narrow)),
            self.weights.four.eq(late(m, self.four, 2)),
            self.weights.scales_slot.eq(late(m, self.slot, 2)),
        ]

    def _write(self, m: Module) -> None:
        nibbles = [Mux(self.half, self.codes[8 * i + 4 : 8 * i + 8], self.codes[8 * i : 8 * i + 4]) for i in range(8)]
        m.d.comb += [
            self.weights.put.eq(self.held),
            self.weights.codes.eq(Cat(*nibbles)),
            self.weights.row.eq(self.where[1:6]),
            self.weights.slot.eq(self.where[6:]),
            self.weights.group.eq(Cat(self.where[0], self.half)),
        ]
