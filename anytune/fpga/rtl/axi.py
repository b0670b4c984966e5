"""The engine behind AXI4-Stream (data in, sums out) and AXI4-Lite (who it is, whether it works, what it counted)."""

from __future__ import annotations

from amaranth.hdl import Cat, ClockDomain, ClockSignal, Const, DomainRenamer, Elaboratable, Module, Mux, Signal

from anytune.fpga.rtl.engine import Engine
from anytune.fpga.rtl.tile import WORDS

ID, VERSION = 0x414E5945, 1
# name -> (address, what it holds): the register map of the documentation and of the driver
REGISTERS = {
    "id": (0x00, "0x414e5945"),
    "version": (0x04, "1"),
    "shape": (0x08, "bits 7:0 rows of cells, 15:8 columns, 31:16 blocks of tile memory"),
    "control": (0x0C, "write: bit 0 clears the counters, bit 1 resets the engine"),
    "status": (0x10, "bit 0 busy, bit 1 a packet of no kind came"),
    "cycles": (0x14, "cycles with the engine busy"),
    "squares": (0x18, "squares computed"),
    "starved": (0x1C, "busy cycles without a square, waiting for packets"),
    "blocked": (0x20, "cycles in which a square waited for space in the result queue"),
}


class Axi(Elaboratable):
    """The top: clock `aclk`, reset `aresetn`, streams s_axis and m_axis of 64 bits, registers s_axi of 32. inner: part
    of another design, on its clock."""

    def __init__(self, inner: bool = False) -> None:
        self.engine, self.inner = Engine(), inner
        self.named: dict[str, Signal] = {}
        for name, width in (
            ("aclk", 1),
            ("aresetn", 1),
            ("s_axis_tvalid", 1),
            ("s_axis_tready", 1),
            ("s_axis_tdata", 64),
            ("m_axis_tvalid", 1),
            ("m_axis_tready", 1),
            ("m_axis_tdata", 64),
            ("m_axis_tlast", 1),
            ("s_axi_awvalid", 1),
            ("s_axi_awready", 1),
            ("s_axi_awaddr", 6),
            ("s_axi_wvalid", 1),
            ("s_axi_wready", 1),
            ("s_axi_wdata", 32),
            ("s_axi_wstrb", 4),
            ("s_axi_bvalid", 1),
            ("s_axi_bready", 1),
            ("s_axi_bresp", 2),
            ("s_axi_arvalid", 1),
            ("s_axi_arready", 1),
            ("s_axi_araddr", 6),
            ("s_axi_rvalid", 1),
            ("s_axi_rready", 1),
            ("s_axi_rdata", 32),
            ("s_axi_rresp", 2),
        ):
            self.named[name] = Signal(width, name=name)

    OUTPUTS = (
        "s_axis_tready",
        "m_axis_tvalid",
        "m_axis_tdata",
        "m_axis_tlast",
        "s_axi_awready",
        "s_axi_wready",
        "s_axi_bvalid",
        "s_axi_bresp",
        "s_axi_arready",
        "s_axi_rvalid",
        "s_axi_rdata",
        "s_axi_rresp",
    )

    def ports(self) -> list[Signal]:
        return list(self.named.values())[2 * self.inner :]

    def elaborate(self, platform) -> Module:
        m, n, e = Module(), self.named, self.engine
        if not self.inner:
            m.domains.sync = sync = ClockDomain("sync")
            m.d.comb += [sync.clk.eq(n["aclk"]), sync.rst.eq(~n["aresetn"])]
        clear, restart = Signal(), Signal()
        m.domains.engine = own = ClockDomain("engine", local=True)
        reset = Signal(init=1)  # a register: it has a long way to go
        m.d.comb += [own.clk.eq(ClockSignal()), own.rst.eq(reset)]
        m.d.sync += reset.eq(restart)
        m.submodules.engine = DomainRenamer("engine")(e)
        awake = ~reset  # a beat that is taken while the engine is reset would be lost
        m.d.comb += [
            e.in_valid.eq(n["s_axis_tvalid"] & awake),
            e.in_data.eq(n["s_axis_tdata"]),
            n["s_axis_tready"].eq(e.in_ready & awake),
            e.out_ready.eq(n["m_axis_tready"]),
            n["m_axis_tvalid"].eq(e.out_valid),
            n["m_axis_tdata"].eq(e.out_data),
            n["m_axis_tlast"].eq(e.out_last),
        ]
        counters = {}
        for name, event in (
            ("cycles", e.busy),
            ("squares", e.square),
            ("starved", e.busy & e.starved),
            ("blocked", e.blocked),
        ):
            counters[name] = counter = Signal(32, name=name)
            seen = Signal(name=f"{name}_event")
            m.d.sync += [seen.eq(event), counter.eq(Mux(clear, 0, counter + seen))]
        self._write(m, clear, restart)
        shape = Const(32 | 8 << 8 | WORDS // 32 << 16, 32)
        self._read(
            m,
            {
                "id": Const(ID, 32),
                "version": Const(VERSION, 32),
                "shape": shape,
                "status": Cat(e.busy, e.bad),
                **counters,
            },
        )
        return m

    def _write(self, m: Module, clear: Signal, restart: Signal) -> None:
        n, both = self.named, Signal()
        m.d.comb += [
            both.eq(n["s_axi_awvalid"] & n["s_axi_wvalid"] & ~n["s_axi_bvalid"]),
            n["s_axi_awready"].eq(both),
            n["s_axi_wready"].eq(both),
        ]
        ours = both & (n["s_axi_awaddr"] == REGISTERS["control"][0]) & n["s_axi_wstrb"][0]
        m.d.sync += [
            clear.eq(ours & n["s_axi_wdata"][0]),
            restart.eq(ours & n["s_axi_wdata"][1]),
            n["s_axi_bvalid"].eq(both | (n["s_axi_bvalid"] & ~n["s_axi_bready"])),
        ]

    def _read(self, m: Module, values: dict) -> None:
        n, accept = self.named, Signal()
        m.d.comb += [accept.eq(n["s_axi_arvalid"] & ~n["s_axi_rvalid"]), n["s_axi_arready"].eq(accept)]
        m.d.sync += n["s_axi_rvalid"].eq(accept | (n["s_axi_rvalid"] & ~n["s_axi_rready"]))
        with m.If(accept):
            with m.Switch(n["s_axi_araddr"][2:]):
                for name, value in values.items():
                    with m.Case(REGISTERS[name][0] >> 2):
                        m.d.sync += n["s_axi_rdata"].eq(value)
                with m.Default():
                    m.d.sync += n["s_axi_rdata"].eq(0)
