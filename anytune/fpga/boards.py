"""Boards that the planner knows: what the data sheets say, and what is assumed of the engine on them."""

from __future__ import annotations

from dataclasses import dataclass

# One engine of 32 x 8 cells as it is routed on the ECP5 (bench/results/hardware_engine.json): 4-input LUTs, carry cells
# and small memories among them; block RAMs of 18 kbit.
LUTS, RAMS = 25_547, 167
FILLED = 0.7  # of a chip's LUTs that can be used before routing gets hard: assumed


@dataclass(frozen=True)
class Board:
    """luts: of 4 inputs on the ECP5, of 6 on the others; rams: block RAMs in units of 18 kbit; memory: bytes beside
    the chip; bandwidth: of it, bytes a second; mhz: of the engine, `clock` says from where; picojoules:
    of a bit from the memory, (least, most)."""

    title: str
    chip: str
    luts: int
    rams: int
    memory: int
    bandwidth: float
    mhz: float
    clock: str
    picojoules: tuple[float, float]
    source: str

    @property
    def engines(self) -> int:
        """How many fit by LUTs and block RAMs, at least one."""
        return max(1, min(int(FILLED * self.luts / LUTS), self.rams // RAMS))


DDR = (20.0, 40.0)  # 1.3 to 2.6 nJ for 64 bits: Horowitz, ISSCC 2014
HBM = (5.0, 10.0)  # a quarter of that: AMD of its HBM devices, "4 times lower power per bit than external memory"
BOARDS = {
    "ecp5-85": Board(
        title="an ECP5-85 with 16 bits of DDR3-800",
        chip="LFE5U-85F",
        luts=83_640,
        rams=208,
        memory=512 << 20,
        bandwidth=1.6e9,
        mhz=132.14,
        clock="routed, grade 8, median of three seeds",
        picojoules=DDR,
        source="LUTs, block RAMs: nextpnr's database of the chip; memory: 16 bits at 800 MT/s, assumed",
    ),
    "kv260": Board(
        title="Kria KV260",
        chip="XCK26 (as ZU5EV)",
        luts=117_120,
        rams=288,
        memory=4 << 30,
        bandwidth=19.2e9,
        mhz=250.0,
        clock="assumed",
        picojoules=DDR,
        source="LUTs, block RAMs (144 of 36 kbit): AMD's KV260 smart camera tutorial, table of resources; memory: AMD "
        "DS987 (v1.1), 4 GB, 64 bits at 2400 Mb/s",
    ),
    "u50": Board(
        title="Alveo U50",
        chip="XCU50",
        luts=870_720,
        rams=2_688,
        memory=8 << 30,
        bandwidth=316e9,
        mhz=300.0,
        clock="assumed",
        picojoules=HBM,
        source="LUTs, block RAMs (1,344 of 36 kbit): as tools for this card count them; memory: AMD UG1120, 8 GB of "
        "HBM; 316 GB/s as AMD DS965 is quoted, UG1393 gives 460 GB/s as the HBM's most",
    ),
    "vcu128": Board(
        title="VCU128",
        chip="XCVU37P",
        luts=1_303_680,
        rams=4_032,
        memory=8 << 30,
        bandwidth=460e9,
        mhz=300.0,
        clock="assumed",
        picojoules=HBM,
        source="LUTs, block RAMs (2,016 of 36 kbit): as tools count them on the U280, which has the same die; memory: "
        "AMD UG949, two stacks of 4 GB, WP485: up to 460 GB/s",
    ),
}
