"""Training of a model's own weights on WebGPU, with bindings so small that matrices and vectors are cut."""

import numpy as np
import pytest

from anytune.engine import optimizers as rules
from anytune.errors import UserError
from anytune.model import Full
from tests.model.conftest import stream
from tests.engine.test_webgpu_engine import pooled
from tests.support import dry, full, tiny
from tests.support.webgpu import checked_bindings, need_webgpu, on_swiftshader

SCRIPT = """
import json, sys
import numpy as np
from anytune.engine.devices import engine_for
from tests.support import full
engine = engine_for("webgpu")
engine.proved = True    # the known answers are tested elsewhere
trainee = full.trainee_of(sys.argv[1], engine=engine)
loss, found = full.gradients(trainee)
np.savez(sys.argv[2], **found)
for kind in full.rules.KINDS:
    full.check_optimizer(engine, kind)
print(json.dumps({"device": engine.device.name, "loss": loss, "norm": engine.norm(list(trainee.gradients.values()))}))
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return full.files(tmp_path_factory.mktemp("full"))


def open_engine(limit: int):
    need_webgpu()
    from anytune.engine.webgpu.adapters import open_device
    from anytune.engine.webgpu.engine import WebGpuEngine

    return WebGpuEngine(open_device(max_binding=limit))


@pytest.fixture(scope="module")
def engine():
    with checked_bindings():
        yield open_engine(64 << 10)


@pytest.mark.parametrize("name", full.NAMES)
def test_gradients_are_the_numpy_engines(files, engine, name):
    full.check_gradients(files[name], 0.999999, 1e-5, 2, engine=engine)  # recorded, replayed


@pytest.mark.parametrize("name", ["lfm2", "qwen35", "qwen35-wide", "qwen35moe", "deepseek2"])
def test_gradients_of_states_weights_are_the_numpy_engines(tmp_path, engine, name):
    full.check_gradients(tiny.write(tmp_path / "m.gguf", name), 0.999999, 1e-5, 2, engine=engine)


@pytest.mark.parametrize("limit", [4096, 128 << 20])
def test_bindings_of_any_size_change_only_rounding(files, engine, limit):
    _, want = full.gradients(full.trainee_of(files["qwen2"], engine=engine))
    other = open_engine(limit)
    other.proved = True
    trainee = full.trainee_of(files["qwen2"], engine=other)
    _, got = full.gradients(trainee)
    assert all(np.linalg.norm(got[name] - want[name]) <= 1e-5 * np.linalg.norm(want[name]) for name in want)
    full.check_norm(other)
    full.check_optimizer(other, "adafactor")


def test_subsets(files, engine):
    full.check_subsets(files["qwen2"], 2e-5, engine=engine)


def test_micro_batches_add_up(files, engine):
    full.check_accumulation(files["qwen3-tied"], engine=engine)


@pytest.mark.parametrize("kind", rules.KINDS)
def test_optimizers_are_the_reference(engine, kind):
    full.check_optimizer(engine, kind)


def test_norm(engine):
    full.check_norm(engine)


@pytest.mark.parametrize("name, kind", [("qwen2", "adamw"), ("qwen3", "adamw8bit"), ("llama", "adafactor")])
def test_steps_are_the_numpy_engines(files, engine, name, kind):
    full.check_steps(files[name], kind, 1e-3, engine=engine)


@pytest.mark.parametrize("kind", rules.KINDS)
def test_resuming_ends_in_the_same_bits(files, engine, kind):
    full.check_resume(files["qwen3-tied"], kind, engine=engine)


def test_a_norm_that_is_not_finite_changes_nothing(files, engine):
    full.check_not_finite(files["llama"], engine=engine)


@pytest.mark.parametrize(
    "name, choice",
    [("llama", Full()), ("gemma3", Full()), ("qwen2", Full("bias,attn_k")), ("qwen3", Full("norm", layers=1))],
)
@pytest.mark.parametrize("keep", [0, 7])
def test_the_count_is_what_the_pool_and_the_device_hold(files, engine, name, choice, keep):
    trainee = full.trainee_of(files[name], choice, 64, engine=engine)
    trainee.keep = keep = min(keep, trainee.config.layers)
    engine.release()
    full.gradients(trainee, stream([64], silent=0.0))
    run = dry.dry_run(trainee, "blocks", 64)
    assert engine.recorder.pool.bytes == pooled(run, keep)
    parts = [trainee.parameters, trainee.gradients, *trainee.states.values()]
    trained = sum(array.buffer.size for part in parts for array in part.values())
    held = sum(m.nbytes for n, m in trainee.model.weights.matrices.items() if n not in trainee.names)
    lookup = 0 if trainee.config.tied else trainee.model.weights.embedding.nbytes
    assert trained + held <= dry.prepared(run) + lookup < trained + held + 200_000


def test_a_step_takes_what_was_estimated(files):
    """But for the allowance for what no count sees."""
    from anytune.engine.webgpu.budget import SMALL

    engine = open_engine(64 << 10)
    engine.proved = True
    trainee = full.trainee_of(files["gemma3"], Full(optimizer="adafactor"), 64, engine=engine)
    full.gradients(trainee, stream([64], silent=0.0))
    trainee.update(1e-3, 1)
    assert engine.peak() == pytest.approx(trainee.estimate.peak_bytes - SMALL, abs=100_000)


@pytest.mark.parametrize("kind", rules.KINDS)
def test_later_steps_make_nothing_new(files, engine, kind):
    """No buffer, bind group or set of parameters: a run of a million steps takes what one of three does."""
    trainee, seen = full.trainee_of(files["qwen2"], Full(optimizer=kind), engine=engine), []
    for step in range(1, 4):
        trainee.accumulate(stream(full.BATCH[0], seed=step), 0.1, step, 0)
        trainee.update(1e-3 / step, step, weight_decay=0.1)
        seen.append((engine.device._serials, len(engine.device._groups), len(engine.commands._slots)))
    assert seen[1] == seen[2]


def test_the_rate_of_the_device_changes_no_bit(engine, monkeypatch):
    """Work is cut by a rate that is measured; gradients' and optimizers' sums are not."""
    random = np.random.default_rng(0)
    w, x, dy = (random.standard_normal(shape).astype(np.float32) for shape in ((320, 96), (40, 96), (40, 320)))

    def step():
        values, gradient = engine.vector(w.reshape(-1)), engine.zeros(w.size)
        group = engine.group([engine.trained(values.reshape(w.shape), gradient.reshape(w.shape))])
        rows, before = engine.integers(np.arange(40)), engine.commands.dispatches
        dys, xs = engine.gather(engine.vector(dy), rows), engine.gather(engine.vector(x), rows)
        engine.linear_backward((dys,), xs, group, False)
        found = [engine.host(gradient), np.array(engine.norm([gradient]))]
        cuts = engine.commands.dispatches - before
        rule, state = rules.Rule(1.0, 1e-2, 1, 0.9, 0.99, 1e-8, 0.1), engine.optimizer_state("adafactor", w.shape)
        engine.optimize("adafactor", values, gradient, state, w.shape, rule)
        return cuts, [*found, engine.host(values), *map(engine.host, state.values())]

    engine.commands.flush()
    few, want = step()
    monkeypatch.setattr("anytune.engine.webgpu.commands.FIRST", 2e5)
    monkeypatch.setattr(engine.commands, "rate", 0.0)
    many, got = step()
    assert many > few
    for one, two in zip(got, want):
        np.testing.assert_array_equal(one, two)


def test_what_a_device_cannot_hold_is_refused(files, engine, monkeypatch):
    monkeypatch.setattr(engine.device, "max_buffer", 80_000)
    with pytest.raises(UserError, match="token_embd.weight would take .* --train-modules"):
        full.trainee_of(files["qwen2"], engine=engine)
    full.trainee_of(files["qwen2"], Full("attn_q"), engine=engine)


def test_lora_after_weights(files, engine):
    """A loss that was not finite, and recordings of another trainee, are forgotten."""
    trainee = full.trainee_of(files["llama"], engine=engine)
    state = {key: np.array(value) for key, value in trainee.state().items()}
    state["output_norm.weight"][0] = np.nan
    trainee.load_state(state)
    assert np.isnan(float(trainee.accumulate(stream([20]), 0.1, 1, 0))) and np.isnan(trainee.update(1e-3, 1))
    from anytune.model import Lora

    lora = trainee.model.trainee(Lora(rank=2), ubatch=40)
    assert np.isfinite(float(lora.accumulate(stream([20]), 0.1, 1, 0))) and np.isfinite(float(lora.update(1e-3, 1)))


def test_swiftshader_gives_the_same_answers(files, tmp_path):
    facts = on_swiftshader(SCRIPT, files["qwen2"], tmp_path / "g.npz")
    trainee = full.trainee_of(files["qwen2"], device="numpy")
    loss, want = full.gradients(trainee)
    norm = trainee.engine.norm(list(trainee.gradients.values()))
    assert facts["loss"] == pytest.approx(loss, rel=1e-5) and facts["norm"] == pytest.approx(norm, rel=1e-5)
    assert full.nearness(dict(np.load(tmp_path / "g.npz")), want)[0] > 0.999999
