"""A pipeline between two AXI4-Streams: it never stalls; its output waits in a queue that is large enough."""

from __future__ import annotations

from amaranth.hdl import ClockDomain, Elaboratable, Module, Signal

from anytune.fpga.rtl.parts import chain, memory, register

DEPTH = 64  # beats of the queue


class Streamed(Elaboratable):
    """Base: `pipeline(m, data)` gives the result STAGES cycles later. Widths in bits; `s_axis`, `m_axis`, `aclk`,
    `aresetn`. inner: part of another design, on its clock."""

    IN, OUT, STAGES = 0, 0, 0
    OUTPUTS = ("s_axis_tready", "m_axis_tvalid", "m_axis_tdata")

    def __init__(self, inner: bool = False) -> None:
        self.inner = inner
        self.named = {
            name: Signal(width, name=name)
            for name, width in (
                ("aclk", 1),
                ("aresetn", 1),
                ("s_axis_tvalid", 1),
                ("s_axis_tready", 1),
                ("s_axis_tdata", self.IN),
                ("m_axis_tvalid", 1),
                ("m_axis_tready", 1),
            )
        }
        self.named["m_axis_tdata"] = Signal(self.OUT, name="m_axis_tdata", reset_less=True)

    def ports(self) -> list[Signal]:
        return list(self.named.values())[2 * self.inner :]

    def pipeline(self, m: Module, data: Signal):
        raise NotImplementedError

    def elaborate(self, platform) -> Module:
        m, n = Module(), self.named
        if not self.inner:
            m.domains.sync = sync = ClockDomain("sync")
            m.d.comb += [sync.clk.eq(n["aclk"]), sync.rst.eq(~n["aresetn"])]
        takes, gives, waiting, ready = Signal(), Signal(), Signal(range(DEPTH + 1)), Signal()
        m.d.comb += [takes.eq(n["s_axis_tvalid"] & ready), n["s_axis_tready"].eq(ready)]
        m.d.sync += [waiting.eq(waiting + takes - gives), ready.eq(waiting < DEPTH - 2)]
        result = self.pipeline(m, register(m, n["s_axis_tdata"]))
        put = chain(m, takes, 1 + self.STAGES, reset=True)[-1]
        self._queue(m, put, result, gives)
        return m

    def _queue(self, m: Module, put, result, gives: Signal) -> None:
        """Block RAM with two stages behind it, which stall with the receiver."""
        n, bits = self.named, DEPTH.bit_length() - 1
        head, tail, moves = Signal(bits + 1), Signal(bits + 1), Signal()
        read, write = memory(m, "queue", self.OUT, DEPTH)
        there, valid = Signal(), Signal()
        moves = ~valid | n["m_axis_tready"]
        m.d.comb += [
            write.addr.eq(head[:bits]),
            write.data.eq(result),
            write.en.eq(put),
            read.addr.eq(tail[:bits]),
            read.en.eq(moves),
            n["m_axis_tvalid"].eq(valid),
            gives.eq(valid & n["m_axis_tready"]),
        ]
        m.d.sync += head.eq(head + put)
        some = register(m, head, reset=True) != tail  # what was written a cycle ago can be read
        with m.If(moves):
            m.d.sync += [there.eq(some), tail.eq(tail + some), valid.eq(there), n["m_axis_tdata"].eq(read.data)]


def words(data, width: int) -> list:
    """data in pieces of `width` bits."""
    return [data[i : i + width] for i in range(0, len(data), width)]
