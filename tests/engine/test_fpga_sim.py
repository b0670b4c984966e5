"""--device fpga-sim: the cores' products in training, known answers of its own, refusals, memory."""

import numpy as np
import pytest

import anytune
from anytune.adapter.adapter import Adapter
from anytune.cli.main import run as command
from anytune.engine.check import known_answers
from anytune.engine.fpga_sim import FpgaSimEngine, _take_largest
from anytune.errors import UserError
from anytune.fpga import formats, products
from anytune.fpga.twin import Twin
from anytune.gguf import GGUF
from tests.model.conftest import stream
from tests.support import dry, tiny
from tests.support.require import need


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("sim") / "q4.gguf", "llama", "Q4_0")


def trainee(path, device, lora=None, **options):
    model = anytune.load(path, device=device, threads=1)
    made = model.trainee(lora or anytune.Lora(rank=5, seed=2), ubatch=64, **options)
    made.parameters[:] += 0.05 * np.random.default_rng(1).standard_normal(made.parameters.size).astype(np.float32)
    return made


@pytest.mark.parametrize("compiled", [True, False])
def test_known_answers(compiled):
    answers = known_answers(FpgaSimEngine(2, compiled), ("F32", "Q4_0", "Q8_0", "Q4_1", "Q5_0"), trained=False)
    assert not [a for a in answers if not a.ok]
    assert sum("to the bit" in a.operation for a in answers) == 2 * len(formats.FORMATS)


def test_a_wrong_bit_is_found(monkeypatch):
    engine = FpgaSimEngine(1)
    right = engine.twin.columns
    monkeypatch.setattr(engine.twin, "columns", lambda terms: right(terms) * np.float32(1 + 2**-22))
    wrong = [a.operation for a in known_answers(engine, ("Q4_0",), trained=False) if not a.ok]
    assert wrong and all("columns" in name for name in wrong)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0", "F32"])
def test_linear_is_the_twins_to_the_bit(tmp_path, kind):
    path = tiny.write(tmp_path / "m.gguf", "llama", kind)
    rng, name = np.random.default_rng(0), "blk.0.ffn_up.weight"
    engine = FpgaSimEngine(2)
    with GGUF.open(path) as file:
        weight = engine.weight(file, name)
        slot = engine.lora_pair(
            rng.standard_normal((3, 64)).astype(np.float32),
            rng.standard_normal((96, 3)).astype(np.float32),
            0.5,
            np.zeros((3, 64), np.float32),
            np.zeros((96, 3), np.float32),
        )
        group = engine.group([weight], None, [slot])
        x, dy = (rng.standard_normal((41, n)).astype(np.float32) for n in (64, 96))
        (y,) = engine.linear(x, group)
        dx = engine.linear_backward((dy,), x, group)
        plain, pair = Twin(False), products.Pair(slot.a, slot.b, 0.5)
        stored = (
            formats.matrix(file.blocks(name), kind) if kind in formats.FORMATS else formats.stored(file.float32(name))
        )
        (want,), saved = products.forward(plain, x, [stored], [pair])
        want_dx, [(want_a, want_b)] = products.backward(plain, [dy], saved, [stored], [pair])
    for got, wanted in ((y, want), (dx, want_dx), (slot.grad_a, want_a), (slot.grad_b, want_b)):
        assert np.array_equal(got.view(np.uint32), np.ascontiguousarray(wanted).view(np.uint32))


@pytest.mark.parametrize(("modules", "least"), [("all", 0.995), ("all,output", 0.98)])
def test_gradients_point_where_float32s_do(file, modules, least):
    batch, found = stream([40, 23], vocab=320), []
    for device in ("numpy", "fpga-sim"):
        made = trainee(file, device, anytune.Lora(rank=5, modules=modules, seed=2))
        loss = made.accumulate(batch, 1.0, 1, 0)
        found.append((loss, np.array(made.gradients, np.float64)))
        assert made.evaluate(batch) == pytest.approx(loss, rel=1e-6)
    (exact, g), (ours, h) = found
    assert ours == pytest.approx(exact, rel=5e-3) and ours != exact
    assert least < g @ h / np.linalg.norm(g) / np.linalg.norm(h) < 1


def test_threads_and_holding_change_no_bit(file):
    batch, found = stream([40, 23], vocab=320), []
    for threads, hold in ((1, "blocks"), (2, "blocks"), (2, "stream")):
        model = anytune.load(file, device="fpga-sim", threads=threads)
        made = model.trainee(anytune.Lora(rank=4, seed=1), ubatch=64)
        model.hold(hold)
        made.parameters[:] += np.float32(0.01)
        found.append((made.accumulate(batch, 1.0, 1, 0), made.gradients.tobytes()))
    assert found[0] == found[1] == found[2]


def test_the_largest_gradients_are_the_hosts():
    z = np.random.default_rng(0).standard_normal((7, 50)).astype(np.float32)
    before = z.copy()
    places, values = _take_largest(z)
    for row in range(7):
        assert set(places[:, row]) == set(np.argsort(-np.abs(before[row]))[:16])
        assert np.array_equal(values[:, row], before[row, places[:, row]]) and not z[row, places[:, row]].any()
    assert np.count_nonzero(z) == 7 * 34


def test_what_the_cores_do_not_do(file):
    with pytest.raises(UserError, match="dropout"):
        trainee(file, "fpga-sim", anytune.Lora(rank=4, dropout=0.1))
    with pytest.raises(UserError, match="adapters"):
        anytune.load(file, device="fpga-sim", threads=1).full_trainee(anytune.Full(), ubatch=32)


def test_a_run_ends_in_an_adapter_that_llama_cpp_reads(file, tmp_path, capsys, monkeypatch):
    need("xllamacpp")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d.txt").write_text("the quick brown fox jumps over the lazy dog. " * 40)
    assert (
        command(
            [
                "train",
                "-m",
                str(file),
                "-f",
                "d.txt",
                "--device",
                "fpga-sim",
                "-c",
                "32",
                "-ub",
                "32",
                "-b",
                "32",
                "--max-steps",
                "6",
                "--lr",
                "1e-2",
                "-o",
                "a.gguf",
                "-q",
                "-t",
                "1",
            ]
        )
        == 0
    )
    capsys.readouterr()
    # llama.cpp rounds activations to eight bits too, in its own way: 1e-2 nats is what verify asks of quantized files
    assert command(["verify", "-m", str(file), "--lora", "a.gguf", "-t", "1"]) == 0, capsys.readouterr().out
    with GGUF.open(file) as gguf:
        assert Adapter.load(tmp_path / "a.gguf", gguf=gguf).rank == 16


def test_the_estimate_covers_what_is_held(file):
    model = anytune.load(file, device="fpga-sim", threads=1)
    made = model.trainee(anytune.Lora(rank=4), ubatch=64)
    made.accumulate(stream([64]), 1.0, 1, 0)
    planes = sum(m._matrix.codes.nbytes + m._matrix.scales.nbytes for m in model.weights.matrices.values() if m._matrix)
    run = dry.check(made, stream([64], silent=0), "blocks", made.engine.sizes, made.keep, exact=False)
    assert planes < run.measure(made.engine.sizes, made.keep)[0]
