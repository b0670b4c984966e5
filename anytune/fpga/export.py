"""The cores as Verilog, with what one needs to try them: a testbench and its data, the register map, the packets."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from anytune.folder import new_folder
from anytune.fpga import driver, formats
from anytune.fpga.driver import BEATS_OUT
from anytune.fpga.simulation import TOP
from anytune.fpga.twin import Twin


def export(folder: str | Path, force: bool = False) -> dict[str, object]:
    """Write all cores into a new folder; {file: bytes}. Raises UserError if the folder is not empty, unless `force`
    allows it to be replaced."""
    from anytune.fpga import routing
    from anytune.fpga.rtl import cores
    from anytune.fpga.rtl.verilog import verilog

    beats, sums = case()
    with new_folder(folder, force=force) as made:
        for name in cores.CORES:
            top = TOP if name == "engine" else f"anytune_{name}"
            (made / f"{top}.v").write_text(verilog(routing.core(name), top), "utf-8")
        text = Path(__file__).with_name("testbench.v").read_text("utf-8")
        text = text.replace("BEATS_IN = 0, BEATS_OUT = 0", f"BEATS_IN = {len(beats)}, BEATS_OUT = {len(sums)}")
        (made / "testbench.v").write_text(text, "utf-8")
        for name, data in (("in", beats), ("out", sums)):
            (made / f"{name}.hex").write_text("".join(f"{beat:016x}\n" for beat in data.tolist()), "ascii")
        (made / "README.md").write_text(manual(), "utf-8")
        return {path.name: path.stat().st_size for path in sorted(made.iterdir())}


def case() -> tuple[np.ndarray, np.ndarray]:
    """The testbench's data: beats in, beats out, of a product by rows and one by columns, in three formats."""
    rng, twin = np.random.default_rng(0), Twin(compiled=False)
    coded = formats.matrix(_blocks(rng, 32, 1, "Q4_0"), "Q4_0")
    least = formats.matrix(_blocks(rng, 32, 1, "Q4_1"), "Q4_1")
    eight = formats.stored(rng.standard_normal((32, 32)))
    x, u = (formats.q8_0(rng.standard_normal((32, 32)).astype(np.float32)) for _ in range(2))
    y = formats.bf16(rng.standard_normal((32, 32)).astype(np.float32))
    beats, sums = [], []
    for direction, terms in (("rows", [(x, coded), (u, eight)]), ("columns", [(y, least)])):
        lefts, stored = [left for left, _ in terms], [driver.Stored(w) for _, w in terms]
        beats += [packet for packet, _ in driver.packets(direction, lefts, stored, 0)]
        sums.append(getattr(twin, direction)(terms).reshape(-1).view("<u8"))
    assert all(len(part) == BEATS_OUT for part in sums)
    return np.concatenate(beats), np.concatenate(sums)


def _blocks(rng: np.random.Generator, n: int, blocks: int, name: str) -> np.ndarray:
    """Random blocks of a format, scales between 2^-7 and 2^-4."""
    size, scales = formats.SIZES[name][1], {"Q4_0": 1, "Q4_1": 2}[name]
    data = rng.integers(0, 256, (n, blocks, size), dtype=np.uint8)
    halves = (rng.integers(0, 1024, (n, blocks, scales)) | rng.integers(8, 12, (n, blocks, scales)) << 10).astype("<u2")
    data[..., : 2 * scales] = halves.view(np.uint8).reshape(n, blocks, -1)
    return data.reshape(n, -1)


def manual() -> str:
    """The exported folder's README: how to simulate it, registers, packets."""
    from anytune.fpga.rtl import packets
    from anytune.fpga.rtl.axi import REGISTERS

    rows = "\n".join(f"| `{address:#04x}` | {name} | {what} |" for name, (address, what) in REGISTERS.items())
    what = packets.__doc__.split("\n\n", 1)[1].strip()
    return f"""# anytune's hardware cores

`{TOP}.v` is the whole engine: clock `aclk`, synchronous reset `aresetn` (active low), `s_axis` and `m_axis`
(AXI4-Stream, 64 bits, little-endian), `s_axi` (AXI4-Lite, 32 bits). The other files are cores of their own, with
streams of the same kind. No vendor's primitives are used: memories are arrays that synthesis maps to block RAM.

    iverilog -o sim {TOP}.v testbench.v && vvp sim          # prints PASS; vvp sim +vcd also writes testbench.vcd

## Registers

| address | name | what it holds |
| --- | --- | --- |
{rows}

## Packets into s_axis

{what}

## Sums out of m_axis

For each square whose bit `last` is set, 32 tokens x 32 outputs in float32: token after token, two numbers a beat,
`tlast` with the 512th beat.
"""
