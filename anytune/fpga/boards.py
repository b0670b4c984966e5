"""Boards that the planner knows: what the data sheets say, and what is assumed of the engine on them."""

from __future__ import annotations

from dataclasses import dataclass

# One engine of 32 x 8 cells as Yosys synthesizes it for the ECP5: 12,545 4-input LUTs, 4,587 carry cells of
# two and 133 small memories of six; block RAMs of 18 kbit. It has not been routed.
LUTS, RAMS = 22_500, 167
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
BOARDS = {
    "ecp5-85": Board(
        "an ECP5-85 with 16 bits of DDR3-800",
        "LFE5U-85F",
        84_000,
        208,
        512 << 20,
        1.6e9,
        80.0,
        "assumed",
        DDR,
        "Lattice FPGA-DS-02012, table 1.1; 16 bits at 800 MT/s",
    ),
    "kv260": Board(
        "Kria KV260",
        "XCK26 (as ZU5EV)",
        117_120,
        288,
        4 << 30,
        19.2e9,
        250.0,
        "assumed",
        DDR,
        "AMD DS987: 117,120 LUTs, 144 block RAMs of 36 kbit, 64 bits of DDR4 at 2400 Mb/s",
    ),
    "u50": Board(
        "Alveo U50",
        "XCU50",
        872_000,
        2_688,
        8 << 30,
        316e9,
        300.0,
        "assumed",
        (7.0, 7.0),
        "AMD DS965: 872 k LUTs, 1,344 block RAMs of 36 kbit, HBM2 at 316 GB/s; AMD gives 7 pJ a bit",
    ),
    "vcu128": Board(
        "VCU128",
        "XCVU37P",
        1_303_680,
        4_032,
        8 << 30,
        460e9,
        300.0,
        "assumed",
        (7.0, 7.0),
        "AMD DS890: 1,303,680 LUTs, 2,016 block RAMs of 36 kbit; UG1302: HBM at 460 GB/s; AMD gives 7 pJ a bit",
    ),
}
