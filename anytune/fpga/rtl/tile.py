"""Tile memory: activations as int8, or gradients as bfloat16, of 32 tokens; and the small one for scaled gradients.

A word has 32 bytes: the codes of a block of one token, or half of a block of gradients. Eight bytes are written at a
time, a word is read in a cycle.
"""

from __future__ import annotations

from amaranth.hdl import Cat, Elaboratable, Module, Mux, Signal

from anytune.fpga.rtl.parts import copies, half_to_scale, late, memory, register, zeros
from anytune.fpga.rtl.weights import SLOTS
from anytune.fpga.schedule import TILE

WORDS = 32 * TILE
AT = (WORDS - 1).bit_length()


class Tile(Elaboratable):
    """Writing: `put` with 8 bytes `data` for part `part` of word `word`; `put_scales` with four float16 for `scales_at`
    (block, token / 4); `put_scaled` with 8 bytes for part `scaled_part` of `scaled_at` (slot, token), and `step` its
    exponent. Reading: `at`; READ cycles later `out`, or `scaled` for `from_scaled` (slot, token); `scale_at` (block,
    token) or (slot, token) if `columns`: SCALE_READ cycles later `scale`, 18 bits.
    """

    READ, SCALE_READ = 5, 6

    def __init__(self) -> None:
        self.put, self.data, self.part, self.word = Signal(), Signal(64), Signal(2), Signal(AT)
        self.put_scales, self.scales, self.scales_at = Signal(), Signal(64), Signal(AT - 2)
        self.put_scaled, self.scaled_data, self.scaled_part = Signal(), Signal(64), Signal(2)
        self.scaled_at, self.step = Signal(7), Signal(8)
        self.at, self.from_scaled, self.out, self.scaled = Signal(AT), Signal(7), Signal(256), Signal(256)
        self.scale_at, self.columns, self.scale = Signal(AT), Signal(), Signal(18)

    def elaborate(self, platform) -> Module:
        m = Module()
        words, wheres = (copies(m, register(m, at), 8) for at in (self.word, self.at))  # block RAMs lie far apart
        at, near = register(m, self.scaled_at), late(m, self.from_scaled, 2)
        for part in range(4):
            here = slice(64 * part, 64 * part + 64)
            put, data = late(m, self.put & (self.part == part), 2, reset=True), late(m, self.data, 2)
            for byte in range(8):
                read, write = memory(m, f"tile{8 * part + byte}", 8, WORDS)
                near_by = 2 * part + byte // 4
                m.d.comb += [
                    write.en.eq(put),
                    write.addr.eq(words[near_by]),
                    read.addr.eq(wheres[near_by]),
                    write.data.eq(data[8 * byte : 8 * byte + 8]),
                ]
                m.d.sync += self.out[64 * part + 8 * byte : 64 * part + 8 * byte + 8].eq(register(m, read.data))
            read, write = memory(m, f"scaled{part}", 64, SLOTS * 32)
            m.d.comb += [
                write.en.eq(register(m, self.put_scaled & (self.scaled_part == part), reset=True)),
                write.addr.eq(at),
                write.data.eq(register(m, self.scaled_data)),
                read.addr.eq(near),
            ]
            m.d.sync += self.scaled[here].eq(register(m, read.data))
        self._scales(m)
        return m

    def _scales(self, m: Module) -> None:
        read, write = memory(m, "scales", 64, WORDS // 4)
        m.d.comb += [
            write.en.eq(register(m, self.put_scales, reset=True)),
            write.addr.eq(register(m, self.scales_at)),
            write.data.eq(register(m, self.scales)),
            read.addr.eq(register(m, self.scale_at[2:])),
        ]
        four = register(m, read.data)  # 3
        half = register(m, four.word_select(late(m, self.scale_at[:2], 3), 16))  # 4
        scale, cycles = half_to_scale(m, half)  # 6
        assert cycles == 2
        read, write = memory(m, "steps", 8, SLOTS * 32)
        m.d.comb += [
            write.en.eq(register(m, self.put_scaled & (self.scaled_part == 0), reset=True)),
            write.addr.eq(register(m, self.scaled_at)),
            write.data.eq(register(m, self.step)),
            read.addr.eq(register(m, self.scale_at[:7])),
        ]
        step = late(m, register(m, read.data), 3)
        m.d.comb += self.scale.eq(Mux(late(m, self.columns, 6), Cat(zeros(10), step), scale[6:24]))
