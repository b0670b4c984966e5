"""The planner: cycles of what the engine really runs, sizes, rates, energy as an interval, the command."""

from dataclasses import replace

import numpy as np
import pytest

from anytune.cli.fpga_plan import lines, plan as command
from anytune.errors import UserError
from anytune.fpga import products
from anytune.fpga.boards import BOARDS
from anytune.fpga.cycles import Cost, cost
from anytune.fpga.formats import FORMATS, SIZES, matrix
from anytune.fpga.plan import decode, linears, plan, price, shape_of, together, whole
from anytune.fpga.schedule import Shape
from anytune.fpga.twin import Twin
from anytune.gguf import BLOCKS, GGUF, TensorInfo
from tests.support import tiny


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    with GGUF.open(tiny.write(tmp_path_factory.mktemp("plan") / "m.gguf", "llama", "Q4_0")) as found:
        yield found


class Counting:
    """An engine that adds up the cost of what it is asked for, and lets the twin compute."""

    def __init__(self):
        self.twin, self.total = Twin(), Cost(0, 0, 0, 0)

    def rows(self, terms):
        self.total += cost("rows", [Shape.of(w) for _, w in terms], len(terms[0][0].q))
        return self.twin.rows(terms)

    def columns(self, terms):
        self.total += cost("columns", [Shape.of(w) for _, w in terms], len(terms[0][0]))
        return self.twin.columns(terms)


@pytest.mark.parametrize("tokens", [32, 70, 128])
def test_planned_cycles_are_those_of_the_products_that_run(file, tokens):
    rng = np.random.default_rng(0)

    def draw(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    names = [f"blk.0.attn_{part}.weight" for part in "qkv"]
    weights = [matrix(file.blocks(name), "Q4_0") for name in names]
    pairs = [products.Pair(draw(16, 64), draw(w.rows, 16), 0.5) for w in weights]
    engine = Counting()
    _, saved = products.forward(engine, draw(tokens, 64), weights, pairs)
    forward, engine.total = engine.total, Cost(0, 0, 0, 0)
    products.backward(engine, [draw(tokens, w.rows) for w in weights], saved, weights, pairs)
    planned = [x for x in linears(file, tokens, 16) if x.name in names]
    assert whole(planned, tokens, 16) == (forward, engine.total)
    assert together([(planned[0].shape, 16)], tokens) == (planned[0].forward, planned[0].backward)


def test_every_tensor_of_a_step_is_counted_once(file):
    found = plan(file, BOARDS["kv260"], tokens=64)
    names = [t["name"] for t in found["tensors"]]
    assert len(names) == len(set(names)) == 2 * 7 + 1 and names[-1] == "output.weight"
    assert all(t["bytes"] == file.tensors[t["name"]].nbytes and t["planes"] == 1 for t in found["tensors"])
    c = found["cycles"]
    assert c["step"] == c["forward"] + c["forward_again"] + c["backward"] + c["head"]
    assert found["tokens_per_second"] == min(found["cells_tokens_per_second"], found["memory_tokens_per_second"])
    assert found["cells_tokens_per_second"] == pytest.approx(
        64 * found["board"]["engines"] * found["mhz"] * 1e6 / c["step"]
    )
    double = plan(file, BOARDS["kv260"], tokens=64, mhz=500.0, bandwidth=1e6)
    assert double["cells_tokens_per_second"] == pytest.approx(2 * found["cells_tokens_per_second"])
    assert double["tokens_per_second"] == double["memory_tokens_per_second"]


def test_a_type_of_two_planes_takes_twice_the_squares(file):
    tensor = replace(file.tensors["blk.0.ffn_up.weight"], shape=(1536, 576))
    one, two = (price(tensor, kind, 128) for kind in ("Q4_0", "Q8_0"))
    assert 1.8 * one < two <= 2 * one
    assert price(tensor, "Q6_K", 128) is None and price(file.tensors["output_norm.weight"], "F32", 128) == 0
    assert price(file.tensors["token_embd.weight"], "F16", 128, tied=False) == 0


def test_types_that_the_cores_do_not_read_are_planned_as_q8_0(tmp_path):
    with GGUF.open(tiny.write(tmp_path / "k.gguf", "llama", "Q6_K")) as file:
        found = plan(file, BOARDS["ecp5-85"])
    assert {t["stored"] for t in found["tensors"]} == {"Q8_0"} and {t["type"] for t in found["tensors"]} == {"Q6_K"}
    assert any("rounded to Q8_0" in line for line in lines(found))


def test_one_token_takes_the_cycles_of_a_tile(file):
    each = linears(file, 1, 16)
    found = decode(each, 16, 1, 100.0, 1e9)
    layers = [x for x in linears(file, 32, 16)[:-1]]
    assert found["cycles"] == whole(layers, 32, 16)[0].cycles + linears(file, 32, 16)[-1].forward.cycles
    weights = sum(x.shape.rows * x.shape.columns * 1024 for x in each)
    assert found["occupancy"] == pytest.approx(weights / 256 / found["cycles"]) and found["occupancy"] < 1 / 32
    assert found["latency_ms"] == pytest.approx(1e3 / found["tokens_per_second"])
    assert found["sequences_32_tokens_per_second"] > 20 * found["tokens_per_second"] or (
        found["tokens_per_second"] == found["memory_tokens_per_second"]
    )
    assert plan(file, BOARDS["u50"], rank=16)["decode"]["cycles"] == found["cycles"]


def test_a_second_term_of_the_input_is_counted(file):
    down = next(x for x in linears(file, 32, 16) if "ffn_down" in x.name)
    assert together([(down.shape, 16)], 32, 2)[0] == down.forward != together([(down.shape, 16)], 32)[0]
    assert together([(down.shape, 16)], 32, 2)[1] == down.backward


def test_claims_are_kept_apart(file):
    files = plan(file, BOARDS["u50"])["files"]
    assert files["types"]["Q4_0"]["below_f16"] == pytest.approx(0.719, abs=5e-4)
    assert files["bits_for_75_percent"] == 4.0
    weights = sum(t.n_elements for t in file.tensors.values() if len(t.shape) > 1)
    assert files["bits_for_300_MB"] == pytest.approx(300e6 * 8 / weights)


def test_energy_is_an_interval_that_says_so(file):
    found = plan(file, BOARDS["ecp5-85"])["energy"]
    assert found["label"] == "estimate" and 0 < found["activity"]["cells"] < found["activity"]["random"] == 0.5
    parts = found["millijoules_per_token"]
    assert all(0 < low < high for low, high in parts.values())
    assert parts["all"][0] == pytest.approx(sum(parts[name][0] for name in ("cells", "lanes", "memory")))


def test_the_command(file, tmp_path):
    from click.testing import CliRunner

    done = CliRunner().invoke(command, ["-m", str(file.path), "--board", "kv260", "--tokens", "32", "--cpu", "-t", "1"])
    assert done.exit_code == 0, done.output
    for word in ("(counted)", "(assumed)", "(measured)", "estimate", "71.9%", "AMD DS987", "one token"):
        assert word in done.output
    wrong = tmp_path / "none.gguf"
    from anytune.gguf import write_gguf

    write_gguf(wrong, {"general.architecture": "x"}, [("a", (4,), "F32", np.zeros(4, np.float32))])
    with GGUF.open(wrong) as empty, pytest.raises(UserError, match="no layers"):
        plan(empty, BOARDS["kv260"])


@pytest.mark.parametrize("kind", FORMATS)
def test_a_planned_shape_is_that_of_the_matrix_that_is_stored(kind):
    n, k = 64, 256
    data = np.zeros((n, k // SIZES[kind][0] * SIZES[kind][1]), np.uint8)
    assert shape_of(TensorInfo("w", (n, k), BLOCKS[kind], 0, data.size), kind) == Shape.of(matrix(data, kind))
