"""The torch engine as a whole, on every torch device of this machine: known answers, gradients against the NumPy
engine, and that what is held, kept or cut in pieces changes only rounding."""

import itertools

import numpy as np
import pytest

from anytune.engine.check import known_answers
from anytune.errors import UserError
from anytune.model import Lora, load
from tests.model.conftest import stream
from tests.support import tiny
from tests.support.cosines import cosines
from tests.support.require import need
from tests.support.triton import DEVICE

need("torch")
NAMES = ("llama", "qwen2", "qwen3", "gemma3")
EACH = (*NAMES, *(name for name in tiny.EACH if name not in (*NAMES, "qwen35")))
PLACES = ["cpu-torch", *(["cuda"] if DEVICE == "cuda" else [])]
FORMATS = {"f32": 0.9999, "fp16": 0.9999, "bf16": 0.999}
# bf16's limits, and the least cosine of adapters drawn with four seeds:
NEAR = FORMATS | {"bf16": 0.998}  # scores that nothing divides, or gates around convolutions: 0.9989, on a card 0.9987
DELTA = FORMATS | {"bf16": 0.996}  # the norm behind a delta net's heads: 0.9980
BLOCKS = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("torch")
    return {name: tiny.write(folder / f"{name}.gguf", name, **tiny.GENTLE.get(name, {})) for name in EACH}


def trainee_of(path, device, dtype="auto", tokens=64, **lora):
    """A trainee whose B is not zero, so that A has gradients."""
    model = load(path, device=device, dtype=dtype, threads=1)
    made = model.trainee(Lora(**{"rank": 3, "alpha": 6.0, **lora}), ubatch=tokens)
    state = {name: np.array(value) for name, value in made.state().items()}
    tail = state["parameters"][made.layout.size_a :]
    tail[...] = 0.1 * np.random.default_rng(3).standard_normal(tail.size)
    made.load_state(state)
    return made


def gradients(trainee, batch, step=1):
    trainee.engine.load(trainee.gradients, np.zeros(trainee.layout.size, np.float32))
    loss = float(trainee.accumulate(batch, 0.1, step, 0))
    return loss, trainee.engine.host(trainee.gradients)


def hold(trainee, how, sizes=None, keep=None):
    """Train on with weights held otherwise, other sizes of pieces, or other layers kept."""
    e, model = trainee.engine, trainee.model
    model.hold(how)
    trainee.layers = model.weights.layers(model.rope_tables(trainee.ubatch), trainee.pairs, trainee.lora.dropout)
    trainee.head = model.weights.head(trainee.pairs)
    e.sizes = sizes or e.sizes
    trainee.keep = trainee.keep if keep is None else keep
    e.prepare([g for la in trainee.layers for g in la.groups] + [trainee.head], trainee.parameters, trainee.gradients)


def same_experts(trainee, batch, chosen):
    """Send every token to these experts, or if there are none yet find out where they go: a rounding that sends one
    elsewhere changes all gradients (cosines of 0.99). A bias decides only who is chosen, not with what weight."""
    e, route, found = trainee.engine, trainee.engine.route, []

    def noted(scores, bias, router):
        made = route(scores, bias, router)
        found.append(made.chosen.clone())
        return made

    def wanted(rows, scores):
        bias = scores.new_zeros(scores.shape)  # a recorded stream's rows of padding may go anywhere
        bias[: len(rows)].scatter_(1, rows, 1e3)
        return bias

    if not chosen:
        e.route = noted
        gradients(trainee, batch)
        del e.route
        return found
    turns = itertools.cycle(chosen)
    e.route = lambda scores, bias, router: route(scores, wanted(next(turns), scores), router)
    return chosen


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("dtype", FORMATS)
def test_known_answers(place, dtype):
    from anytune.engine.devices import engine_for

    answers = known_answers(engine_for(place, dtype=dtype), BLOCKS)
    assert len(answers) > 60 and not [a for a in answers if not a.ok]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", EACH)
def test_gradients_are_the_numpy_engines(files, place, name):
    batch = stream([17, 1, 22, 24])
    loss, want = gradients(trainee_of(files[name], "numpy"), batch)
    chosen = []
    for dtype, least in {"qwen35moe": DELTA, "gemma4": NEAR, "lfm2moe": NEAR}.get(name, FORMATS).items():
        trainee = trainee_of(files[name], place, dtype)
        if tiny.has_experts(name):
            chosen = same_experts(trainee, batch, chosen)
        for _ in range(3):  # eager, recorded, replayed
            found, got = gradients(trainee, batch)
            assert found == pytest.approx(loss, rel=1e-5 if dtype == "f32" else 2e-3)
            low = min(cosines(trainee, got, want))
            assert low[0] >= least, (dtype, low)
        assert float(trainee.evaluate(batch)) == pytest.approx(found, rel=1e-6)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", NAMES)
def test_what_is_held_and_kept_changes_only_rounding(files, place, name):
    from anytune.engine.torch.sizes import AWAY, Sizes

    batch, trainee = stream([30, 10, 9]), trainee_of(files[name], place, "f32")
    loss, want = gradients(trainee, batch)
    for how in ("dense", "blocks", "stream"):
        for sizes, keep in ((Sizes(logits=3000, head=100), 0), (AWAY, 1), (Sizes(), 2)):
            hold(trainee, how, sizes, keep)
            found, got = gradients(trainee, batch)
            assert found == pytest.approx(loss, rel=1e-5)
            assert np.linalg.norm(got - want) <= 2e-5 * np.linalg.norm(want), (how, sizes, keep)


@pytest.mark.parametrize("place", PLACES)
def test_recomputing_gives_the_same_bits(files, place):
    trainee, batch = trainee_of(files["qwen3"], place), stream([30, 10])
    once, again = gradients(trainee, batch), None
    for keep in (0, 1, 2):
        trainee.keep = keep
        trainee.engine.release()
        hold(trainee, "dense")
        again = gradients(trainee, batch)
        assert once[0] == again[0]
        np.testing.assert_array_equal(once[1], again[1])


@pytest.mark.parametrize("place", PLACES)
def test_steps_of_many_sizes_and_halting(files, place):
    """Streams of all lengths replay the right numbers; a step that is not finite stops all that follow."""
    one, two = trainee_of(files["llama"], place, "f32"), trainee_of(files["llama"], "numpy")
    for step in range(1, 9):
        batch = stream([3 + 5 * step, 7], seed=step % 3)
        losses = [float(t.accumulate(batch, 0.02, step, 0)) for t in (one, two)]
        norms = [float(t.update(1e-3, step)) for t in (one, two)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4) and norms[0] == pytest.approx(norms[1], rel=1e-3)
    before = one.state()["parameters"].copy()
    np.testing.assert_allclose(before, two.state()["parameters"], atol=2e-4)
    state = {name: value.copy() for name, value in one.state().items()}
    bad = state["parameters"].copy()
    bad[5] = np.nan
    one.load_state({**state, "parameters": bad})
    one.accumulate(stream([20]), 0.02, 9, 0)
    assert np.isnan(float(one.update(1e-3, 9)))
    one.load_state(state)
    one.accumulate(stream([20]), 0.02, 9, 0)
    assert np.isfinite(float(one.update(1e-3, 9))) and not np.array_equal(one.state()["parameters"], before)


@pytest.mark.parametrize("place", PLACES)
def test_dropout_is_a_mask_of_the_step(files, place):
    trainee, batch = trainee_of(files["qwen3"], place, "f32", dropout=0.4), stream([30, 20])
    first, same, other = (gradients(trainee, batch, step) for step in (1, 1, 2))
    np.testing.assert_array_equal(first[1], same[1])
    assert first[0] != other[0] and float(trainee.evaluate(batch)) != first[0]
    direction = first[1] / np.linalg.norm(first[1])  # the gradient is the slope of the masked loss
    state, losses = {k: v.copy() for k, v in trainee.state().items()}, []
    for sign in (1, -1):
        trainee.load_state({**state, "parameters": (state["parameters"] + sign * 5e-3 * direction).astype(np.float32)})
        losses.append(0.1 * gradients(trainee, batch)[0])
    assert (losses[0] - losses[1]) / 1e-2 == pytest.approx(np.linalg.norm(first[1]), rel=1e-2)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", EACH)
def test_generation_is_the_numpy_engines(files, place, name):
    adapter = trainee_of(files[name], "numpy").adapter()
    feeds = [[[5, 6, 7], [9]], [[8], [4]], [[], [3, 2, 1]], [[7], [7]], [[6], [6]], [[5], [5]]]
    results = []
    for device in ("numpy", place):
        decoder = load(files[name], device=device, dtype="f32" if device == place else "auto", threads=1).decoder(
            adapter=adapter, batch=2, context=64
        )
        results.append([decoder.feed(tokens) for tokens in feeds])
    for want, got in zip(*results):
        np.testing.assert_allclose(got, want, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("most", [1, 7])
def test_the_device_finds_the_likeliest_tokens(files, place, most):
    """feed_best() is feed(), cut: eager, recorded and replayed, and with a slot that is fed nothing."""
    feeds = [[[5, 6, 7], [9]], [[8], [4]], [[], [3, 2, 1]], [[7], [7]], [[6], [6]], [[5], [5]]]
    whole, cut = (load(files["qwen3"], device=place, dtype="f32").decoder(batch=2, context=64) for _ in range(2))
    for tokens in feeds:
        logits, (ids, values) = whole.feed(tokens), cut.feed_best(tokens, most)
        for slot, new in enumerate(tokens):
            if not new:
                assert (ids[slot] == -1).all() and np.isnan(values[slot]).all()
                continue
            np.testing.assert_allclose(values[slot], np.sort(logits[slot])[::-1][:most], rtol=1e-6)
            np.testing.assert_allclose(logits[slot][ids[slot]], values[slot], rtol=1e-6)


def test_a_head_that_is_trained(files):
    one, two = (trainee_of(files["llama"], device, modules="output,attn_q") for device in ("cpu-torch", "numpy"))
    batch = stream([30, 20])
    found, want = gradients(one, batch), gradients(two, batch)
    assert found[0] == pytest.approx(want[0], rel=1e-5)
    assert min(cosines(one, found[1], want[1]))[0] > 0.9999


@pytest.mark.parametrize(
    "name, words",
    [
        ("cuda", "cuda"),
        ("mps", "Apple"),
        ("cuda:7", "cuda:7"),
        ("cpu-torch:1", "cpu-torch"),
        ("tpu", "tpu"),
        ("cuda:x", "cuda:x"),
    ],
)
def test_devices_that_are_not_there(files, name, words):
    if DEVICE == "cuda" and name == "cuda":
        pytest.skip("this machine has one")
    with pytest.raises(UserError, match=words):
        load(files["llama"], device=name)
    with pytest.raises(UserError, match="--dtype"):
        load(files["llama"], device="numpy", dtype="bf16")


def test_a_budget_that_cannot_be_met_is_refused(files):
    with pytest.raises(UserError, match="--memory"):
        load(files["llama"], device="cpu-torch", memory=1 << 20).trainee(Lora(), ubatch=64)
