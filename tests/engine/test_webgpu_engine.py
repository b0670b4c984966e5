"""The WebGPU engine as a whole: known answers, gradients against the NumPy engine, generation, halting, resuming, and
that bindings of any size, recomputing and streaming change only rounding."""

import numpy as np
import pytest

from anytune.engine.check import known_answers
from anytune.engine.dry import peaks
from anytune.errors import UserError
from anytune.model import Lora, load
from tests.engine.test_torch_engine import gradients, trainee_of
from tests.model.conftest import stream
from tests.support import dry, tiny
from tests.support.cosines import cosines
from tests.support.webgpu import checked_bindings, need_webgpu

NAMES = ("llama", "qwen2", "qwen3", "gemma3")
EACH = tuple(dict.fromkeys((*NAMES, *tiny.EACH, "mixtral", "gemma4-experts", "deepseek2-old")))
NEAR = dict.fromkeys(("qwen35", "qwen35moe"), 1e-4)  # distance of all gradients: tiny delta nets magnify roundings
CAPS = ("128MiB", "8KiB")  # of a binding: nothing is cut, everything is
ALIKE = ("qwen3moe", "mixtral", "glm4moe", "gemma4-experts", "lfm2moe")  # in pieces they are as gpt-oss and qwen35moe
CASES = [(cap, name) for cap in CAPS for name in EACH if cap == CAPS[0] or name not in ALIKE]


@pytest.fixture(scope="module", autouse=True)
def device():
    need_webgpu()
    with checked_bindings():
        yield


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("webgpu")
    return {name: tiny.write(folder / f"{name}.gguf", name, **tiny.GENTLE.get(name, {})) for name in EACH}


@pytest.fixture(params=CAPS)
def cap(request, monkeypatch):
    monkeypatch.setenv("ANYTUNE_MAX_BINDING", request.param)
    return request.param


def test_known_answers(cap):
    from anytune.engine.devices import engine_for

    answers = known_answers(engine_for("webgpu"), ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"))
    assert len(answers) > 60 and all(a.error < 1e-5 for a in answers)


@pytest.mark.parametrize("cap, name", CASES, indirect=["cap"])
def test_gradients_are_the_numpy_engines(files, cap, name):
    batch = stream([17, 1, 22, 24])
    loss, want = gradients(trainee_of(files[name], "numpy"), batch)
    trainee = trainee_of(files[name], "webgpu")
    for _ in range(2):  # recorded, replayed
        found, got = gradients(trainee, batch)
        assert found == pytest.approx(loss, rel=1e-5)
        low = min(cosines(trainee, got, want))
        assert low[0] >= 0.9999, low
        assert np.linalg.norm(got - want) <= NEAR.get(name, 1e-5) * np.linalg.norm(want)
    assert float(trainee.evaluate(batch)) == pytest.approx(found, rel=1e-6)


@pytest.mark.parametrize("name", ("qwen3", "gemma3", "lfm2"))
def test_what_is_held_and_kept_changes_only_rounding(files, name):
    from anytune.engine.webgpu.sizes import Sizes
    from tests.engine.test_torch_engine import hold

    batch, trainee = stream([30, 10, 9]), trainee_of(files[name], "webgpu")
    loss, want = gradients(trainee, batch)
    for how, sizes, keep in (
        ("stream", Sizes(), 2),
        ("stream", Sizes(logits=3000), 0),
        ("blocks", Sizes(logits=3000), 1),
    ):
        hold(trainee, how, sizes, keep)
        for _ in range(2):
            found, got = gradients(trainee, batch)
            assert found == pytest.approx(loss, rel=1e-5)
            assert np.linalg.norm(got - want) <= 2e-5 * np.linalg.norm(want), (how, sizes, keep)


@pytest.mark.parametrize("name", ("qwen3", "qwen35", "gpt-oss"))
def test_recomputing_gives_the_same_bits(files, name):
    from tests.engine.test_torch_engine import hold

    trainee, batch = trainee_of(files[name], "webgpu"), stream([30, 10])
    once = gradients(trainee, batch)
    for keep in (0, 1):
        hold(trainee, "blocks", keep=keep)
        again = gradients(trainee, batch)
        assert once[0] == again[0]
        np.testing.assert_array_equal(once[1], again[1])


def test_steps_of_many_sizes_and_halting(files):
    """Streams of all lengths replay the right numbers; a step that is not finite stops all that follow."""
    one, two = trainee_of(files["llama"], "webgpu"), trainee_of(files["llama"], "numpy")
    for step in range(1, 9):
        batch = stream([3 + 5 * step, 7], seed=step % 3)
        losses = [float(t.accumulate(batch, 0.02, step, 0)) for t in (one, two)]
        norms = [float(t.update(1e-3, step)) for t in (one, two)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4) and norms[0] == pytest.approx(norms[1], rel=1e-3)
    before = one.state()["parameters"].copy()
    np.testing.assert_allclose(before, two.state()["parameters"], atol=2e-4)
    state = one.state()
    bad = state["parameters"].copy()
    bad[5] = np.nan
    one.load_state({**state, "parameters": bad})
    for step in (9, 10):
        one.accumulate(stream([20]), 0.02, step, 0)
        assert np.isnan(float(one.update(1e-3, step)))
    assert not np.isnan(np.delete(one.state()["parameters"], 5)).any()
    one.load_state(state)
    one.accumulate(stream([20]), 0.02, 9, 0)
    assert np.isfinite(float(one.update(1e-3, 9))) and not np.array_equal(one.state()["parameters"], before)


@pytest.mark.parametrize("name", ("qwen35", "lfm2", "qwen3moe"))
def test_losses_stay_the_numpy_engines(files, name):
    """Over steps of AdamW on streams of several lengths, replayed."""
    one, two = trainee_of(files[name], "webgpu"), trainee_of(files[name], "numpy")
    for step in range(1, 21):
        batch, losses = stream([20 + step % 3, 17, 9], seed=step % 4), []
        for trainee in (one, two):
            losses.append(float(trainee.accumulate(batch, 0.02, step, 0)))
            trainee.update(1e-3, step)
        assert losses[0] == pytest.approx(losses[1], rel=5e-3)


@pytest.mark.parametrize("name", ("gemma3", "qwen35", "gpt-oss"))
def test_going_on_from_a_state_gives_the_same_bits(files, name):
    def steps(trainee, first, last):
        for step in range(first, last):
            trainee.accumulate(stream([20 + step, 9], seed=step), 0.02, step, 0)
            trainee.update(1e-3, step)
        return trainee.state()

    whole = steps(trainee_of(files[name], "webgpu"), 1, 6)
    half = steps(trainee_of(files[name], "webgpu"), 1, 3)
    other = trainee_of(files[name], "webgpu")
    other.load_state(half)
    for name, value in steps(other, 3, 6).items():
        np.testing.assert_array_equal(value, whole[name])


def test_numbers_may_be_read_late(files):
    trainee = trainee_of(files["llama"], "webgpu")
    losses = [trainee.accumulate(stream([20], seed=s), 0.02, 1, s) for s in range(5)]
    again = [float(trainee.accumulate(stream([20], seed=s), 0.02, 1, s)) for s in range(5)]
    assert [float(x) for x in reversed(losses)] == again[::-1] and len(set(again)) == 5


def test_dropout_is_a_mask_of_the_step(files):
    trainee, batch = trainee_of(files["qwen3"], "webgpu", dropout=0.4), stream([30, 20])
    first, same, other = (gradients(trainee, batch, step) for step in (1, 1, 2))
    np.testing.assert_array_equal(first[1], same[1])
    assert first[0] != other[0] and float(trainee.evaluate(batch)) != first[0]
    direction = first[1] / np.linalg.norm(first[1])  # the gradient is the slope of the masked loss
    state, losses = trainee.state(), []
    for sign in (1, -1):
        trainee.load_state({**state, "parameters": (state["parameters"] + sign * 5e-3 * direction).astype(np.float32)})
        losses.append(0.1 * gradients(trainee, batch)[0])
    assert (losses[0] - losses[1]) / 1e-2 == pytest.approx(np.linalg.norm(first[1]), rel=1e-2)


@pytest.mark.parametrize("cap, name", CASES, indirect=["cap"])
def test_generation_is_the_numpy_engines(files, cap, name):
    adapter = trainee_of(files[name], "numpy").adapter()
    feeds = [[[5, 6, 7], [9]], [[8], [4]], [[], [3, 2, 1]], [[7], [7]], [[6], [6]], [[5], [5]]]
    results = []
    for device in ("numpy", "webgpu"):
        decoder = load(files[name], device=device, threads=1).decoder(adapter=adapter, batch=2, context=30)
        results.append([decoder.feed(tokens) for tokens in feeds])
    for want, got in zip(*results):
        np.testing.assert_allclose(got, want, atol=2e-4, rtol=1e-4)


def test_a_head_that_is_trained(files):
    one, two = (trainee_of(files["llama"], device, modules="output,attn_q") for device in ("webgpu", "numpy"))
    batch = stream([30, 20])
    found, want = gradients(one, batch), gradients(two, batch)
    assert found[0] == pytest.approx(want[0], rel=1e-5)
    assert min(cosines(one, found[1], want[1]))[0] > 0.9999


@pytest.mark.parametrize(
    "keep, name", [(keep, name) for keep in (0, 1, 7) for name in EACH if keep != 1 or name not in ALIKE]
)
def test_the_estimate_is_what_the_pool_takes(files, name, keep):
    """The count runs on shapes what the engine runs on buffers: every byte of the pool is foreseen."""
    from tests.engine.test_torch_engine import hold

    trainee = trainee_of(files[name], "webgpu")
    keep = min(keep, trainee.config.layers)
    hold(trainee, "blocks", keep=keep)
    batch = stream([64], silent=0.0)
    gradients(trainee, batch)
    e = trainee.engine
    run = dry.dry_run(trainee, "blocks", 64)
    assert e.recorder.pool.bytes == pytest.approx(pooled(run, keep), rel=0.02)


@pytest.mark.parametrize("name", ("qwen3", "qwen3moe"))
def test_the_estimate_of_streamed_weights(files, name):
    """Whatever was counted before, the two buffers that they come through are among it."""
    trainee, counts = trainee_of(files[name], "webgpu"), []
    for keeps in ((2,), (0, 2)):
        run = dry.dry_run(trainee, "stream", 64)
        counts.append([run.measure(run.engine.sizes, keep) for keep in keeps][-1][0])
    largest = max(m.nbytes for name, m in trainee.model.weights.matrices.items() if name.startswith("blk"))
    assert counts[0] == pytest.approx(counts[1], rel=1e-3) and counts[1] > pooled(run, 2) + 2 * largest


def pooled(run, keep: int) -> int:
    """Bytes of the pool, of a dry run."""
    run.measure(run.engine.sizes, keep)
    most, _ = peaks(run.segments(run.engine.sizes, keep))
    return sum(size * count for size, count in most.items() if size != "bytes")


def test_the_binding_limit_can_be_lowered(files, capsys):
    from anytune.cli.main import run

    whole, low = (load(files["llama"], device="webgpu", max_binding=size) for size in (None, 16384))
    assert low.engine.device.max_binding == 16384 < whole.engine.device.max_binding
    np.testing.assert_allclose(low.logits([1, 2, 3]), whole.logits([1, 2, 3]), atol=1e-5)
    for device, words in (("numpy", "numpy has no bindings"), ("webgpu", "at least 4096")):
        assert run(["generate", "-m", str(files["llama"]), "-p", "a", "--device", device, "--max-binding", "1KiB"]) == 2
        said = capsys.readouterr().err
        assert words in said and "--max-binding" in said and said.count("\n") == 1


def test_what_cannot_be_had_is_refused(files, monkeypatch):
    with pytest.raises(UserError, match="webgpu:9"):
        load(files["llama"], device="webgpu:9")
    with pytest.raises(UserError, match="webgpu:x"):
        load(files["llama"], device="webgpu:x")
    with pytest.raises(UserError, match="--memory"):
        load(files["llama"], device="webgpu", memory=1 << 20).trainee(Lora(), ubatch=64)
    monkeypatch.setenv("ANYTUNE_MAX_BINDING", "100")
    with pytest.raises(UserError, match="ANYTUNE_MAX_BINDING"):
        load(files["llama"], device="webgpu")


def test_buffers_survive_the_collection_of_dead_cycles():
    """An exception's frames hold loans in cycles; the collector announces every end before it frees anything."""
    import gc

    from anytune.engine.devices import engine_for
    from anytune.engine.webgpu.arrays import Pool

    e = engine_for("webgpu")
    pool = Pool(e.device)
    cycle = [pool.take(100)]
    serial = cycle[0].serial
    cycle.append(cycle)
    del cycle
    gc.collect()
    e.commands.flush()
    loan = pool.take(100)
    assert loan.serial == serial
    e.device.write(loan.raw, 0, np.arange(100, dtype=np.float32))
    np.testing.assert_array_equal(e.device.read(loan.raw, 0, 400).view(np.float32), np.arange(100))
