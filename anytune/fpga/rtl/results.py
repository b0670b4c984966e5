"""Sums out: four groups of 32 tokens x 32 outputs wait here, and leave token after token, two float32 a beat."""

from __future__ import annotations

from amaranth.hdl import Cat, Elaboratable, Module, Signal

from anytune.fpga.rtl.parts import memory, register

GROUPS = 4


class Results(Elaboratable):
    """`reserve`: room for a group is taken; `reserved` groups have it. `out_last` with the last beat of a group."""

    def __init__(self) -> None:
        self.out_valid, self.out_ready, self.out_data, self.out_last = Signal(), Signal(), Signal(64), Signal()
        self.reserve, self.reserved, self.busy = Signal(), Signal(3), Signal()
        self.lanes = [
            (Signal(name=f"put{c}"), Signal(32, name=f"value{c}"), Signal(7, name=f"at{c}")) for c in range(8)
        ]

    def connect(self, m: Module, c: int, lane) -> None:
        put, value, at = self.lanes[c]
        m.d.comb += [put.eq(lane.out_valid), value.eq(lane.out), at.eq(lane.out_at)]

    def elaborate(self, platform) -> Module:
        m = Module()
        step, group, words = Signal(7), Signal(2), []
        for c, (put, value, at) in enumerate(self.lanes):
            read, write = memory(m, f"lane{c}", 32, 128 * GROUPS)
            into = Signal(2, name=f"into{c}")
            put, value, at = register(m, put, reset=True), register(m, value), register(m, at)
            m.d.comb += [
                write.en.eq(put),
                write.data.eq(value),
                write.addr.eq(Cat(at, into)),
                read.addr.eq(Cat(step[2:], step[:2], group)),
            ]
            words.append(register(m, read.data))
            with m.If(put & (at == 127)):
                m.d.sync += into.eq(into + 1)
            if c == 7:
                whole = put & (at == 127)
        fetched, freed = self._fetch(m, Cat(*words), whole, step, group)
        m.d.sync += self.reserved.eq(self.reserved + self.reserve - freed)
        left, word, last, room = Signal(3), Signal(256, reset_less=True), Signal(), Signal()
        waiting, next_word, next_last = fetched
        with m.If(room & (left[1:] == 0) & waiting):
            m.d.sync += [left.eq(4), word.eq(next_word), last.eq(next_last), waiting.eq(0)]
        with m.Elif(room & (left != 0)):
            m.d.sync += [left.eq(left - 1), word.eq(word[64:])]
        waits = self._queue(m, room & (left != 0), Cat(word[:64], last & (left == 1)), room)
        m.d.comb += self.busy.eq((left != 0) | (self.reserved != 0) | waiting | waits)
        return m

    def _queue(self, m: Module, put, beat, room: Signal) -> Signal:
        """Sixteen beats, so that what the receiver says goes no further than here; whether any is there."""
        read, write = memory(m, "queue", 65, 16, domain="comb")
        head, tail, held, valid = Signal(5), Signal(5), Signal(5), Signal()
        takes = Signal()
        m.d.comb += [
            takes.eq((head != tail) & (~valid | self.out_ready)),
            write.en.eq(put),
            write.data.eq(beat),
            write.addr.eq(head[:4]),
            read.addr.eq(tail[:4]),
            held.eq(head - tail),
            self.out_valid.eq(valid),
        ]
        m.d.sync += [
            head.eq(head + put),
            tail.eq(tail + takes),
            room.eq(held < 12),
            valid.eq(takes | (valid & ~self.out_ready)),
        ]
        with m.If(takes):
            m.d.sync += Cat(self.out_data, self.out_last).eq(read.data)
        return valid | (head != tail)

    def _fetch(self, m: Module, words, whole, step: Signal, group: Signal) -> tuple:
        """The next word of eight sums, ready before it is needed."""
        complete, asked, comes = Signal(3), Signal(), Signal()
        waiting, word, last, freed = Signal(), Signal(256, reset_less=True), Signal(), Signal()
        ask = Signal()
        m.d.comb += [ask.eq((complete != 0) & ~asked & ~comes & ~waiting), freed.eq(comes & (step == 127))]
        m.d.sync += [asked.eq(ask), comes.eq(asked), complete.eq(complete + whole - freed)]
        with m.If(comes):
            m.d.sync += [waiting.eq(1), word.eq(words), last.eq(step == 127), step.eq(step + 1)]
        with m.If(freed):
            m.d.sync += group.eq(group + 1)
        return (waiting, word, last), freed
