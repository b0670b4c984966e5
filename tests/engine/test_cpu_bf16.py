"""The bf16 CPU engine: known answers, gradients against the NumPy engine, the same bits from run to run, and that it
takes the memory that was planned. (Its products alone: test_cpu_bf16_products.py.)"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anytune.engine import cpu_bf16
from anytune.engine.cpu_bf16.sizes import Bf16Sizes
from anytune.engine.check import known_answers
from anytune.engine.composed import Composed
from anytune.engine.devices import engine_for
from anytune.engine.numpy.sizes import LEAN, Sizes
from anytune.errors import UserError
from anytune.gguf import GGUF, write_gguf
from anytune.model import Lora, load
from anytune.text.packing import MicroBatch
from tests.engine.conftest import TINY
from tests.model.conftest import stream
from tests.support import dry, models, tiny
from tests.support.cosines import cosines
from tests.support.require import need_bf16_products
from tests.support.routes import follow

need_bf16_products()

from anytune.engine.cpu_bf16 import CpuBf16Engine, rows  # noqa: E402 (compiled, where it can be)

NAMES = ("llama", "qwen2", "qwen3", "gemma3")
# of experts bf16 may choose another; test_experts_model.py has those
EACH = (*NAMES, *(name for name in tiny.EACH if name not in (*NAMES, "qwen35") and not tiny.has_experts(name)))
SIZES = {"usual": Sizes(), "lean": LEAN, "tiny": TINY}
BLOCKS = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
COSINE = 0.999
TEXT = """The harbour was quiet when the first boats came in. Nets hung over the rails to dry, gulls walked along the
wall as if they owned it, and the old clock above the customs house said ten past six, as it had done for eleven
years. Nobody minded. The fish were sold by weight, the coffee by the cup, and the news for nothing at all: who had
married, whose engine had failed, which of the captains had promised again to stop smoking. In the afternoon the wind
turned to the west. Then the women who mended the sails closed their shutters, the children were called in from the
pier, and the ferry, which is never late, was late."""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bf16")
    return {name: tiny.write(folder / f"{name}.gguf", name) for name in EACH}


def trainee_of(path, device="cpu-bf16", threads=1, tokens=64, spread=0.1, **lora):
    """A trainee whose B is not zero, so that A has gradients."""
    made = load(path, device=device, threads=threads).trainee(Lora(**{"rank": 3, "alpha": 6.0, **lora}), ubatch=tokens)
    tail = made.parameters[made.layout.size_a :]
    tail[...] = spread * np.random.default_rng(3).standard_normal(tail.size)
    return made


def gradients(trainee, batch, step=1):
    trainee.gradients[...] = 0
    return trainee.accumulate(batch, 0.1, step, 0), trainee.gradients.copy()


class Poisoned(CpuBf16Engine):
    """Rows of bf16 come with NaN in all of their columns, so that none may be read that was not written."""

    def flat(self, floats):
        made = super().flat(floats)
        made.view(np.uint32)[...] = 0xFFFFFFFF
        return made


# ---- operations --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("pieces", SIZES)
def test_known_answers(threads, pieces):
    engine = Poisoned(threads)
    engine.sizes = SIZES[pieces]
    answers = known_answers(engine, BLOCKS)
    engine.workers.close()
    assert len(answers) > 60 and not [a for a in answers if not a.ok]


@settings(max_examples=25, deadline=None)
@given(
    tokens=st.integers(1, 90),
    features=st.integers(1, 75),
    outs=st.lists(st.integers(1, 70), min_size=1, max_size=3),
    rank=st.integers(0, 5),
    threads=st.sampled_from([1, 2]),
    gelu=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_joined_operations_are_the_single_ones(tmp_path_factory, tokens, features, outs, rank, threads, gelu, seed):
    """norm_linear and glu_linear, which write bf16 at once, against composed.py's, which go through float32."""
    random, e = np.random.default_rng(seed), Poisoned(threads)

    def draw(*shape):
        return random.standard_normal(shape).astype(np.float32)

    path = tmp_path_factory.mktemp("joined") / "w.gguf"
    write_gguf(
        path,
        {"general.architecture": "check"},
        [(str(i), (out, features), "F32", draw(out, features)) for i, out in enumerate(outs)],
    )
    with GGUF.open(path) as gguf:
        weights = [e.weight(gguf, str(i)) for i in range(len(outs))]
        pairs = [(draw(rank, features), draw(out, rank)) for out in outs]
        x, up, gain = draw(tokens, features), draw(tokens, features), draw(features)
        dys = tuple(draw(tokens, out) for out in outs)
        results = []
        for kind in (CpuBf16Engine, Composed):
            grads = [(np.zeros_like(a), np.zeros_like(b)) for a, b in pairs]
            group = e.group(weights, None, [e.lora_pair(*p, 0.5, *g) for p, g in zip(pairs, grads)] if rank else None)
            one = e.group(weights[:1], None, group.pairs[:1])
            e.begin(np.array([0, tokens], np.int32), tokens)
            e.row_padding, act = group.rank, "gelu" if gelu else "silu"
            results.append(
                [
                    *map(e.host, kind.norm_linear(e, x, gain, 1e-5, group)),
                    e.host(kind.norm_linear_backward(e, dys, x, gain, 1e-5, group, None)),
                    *map(e.host, kind.glu_linear(e, x, up, act, one)),
                    *map(e.host, kind.glu_linear_backward(e, dys[0], x, up, act, one, None)),
                    *(g for pair in grads for g in pair),
                ]
            )
            assert kind.norm_linear_backward(e, dys, x, gain, 1e-5, group, None, need_dx=False) is None
    e.workers.close()
    terms = [0] * (len(results[0]) - 2 * len(outs)) + [tokens * n for out in outs for n in (out, features)]
    for got, want, count in zip(*results, terms, strict=True):
        # the sum of `count` products of a gradient may be nearly nothing, which the rounding of its terms is not
        size = np.linalg.norm(want) + (count * got.size) ** 0.5
        assert got.shape == want.shape and np.linalg.norm(got - want) <= 4e-3 * size


# ---- models ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("threads", [1, 2])
def test_gradients_are_the_numpy_engines(files, name, threads):
    batch = stream([17, 1, 22, 24])
    loss, want = gradients(trainee_of(files[name], "numpy"), batch)
    trainee = trainee_of(files[name], threads=threads)
    for sizes in SIZES.values():
        trainee.engine.sizes = sizes
        found, got = gradients(trainee, batch)
        assert found == pytest.approx(loss, rel=2e-3)
        least = min(cosines(trainee, got, want))
        assert least[0] >= COSINE, least
        assert trainee.evaluate(batch) == pytest.approx(found, rel=1e-6)


@pytest.mark.parametrize("name", ["lfm2moe", "deepseek2", "deepseek3"])
def test_gradients_of_mixtures_with_the_same_experts(tmp_path, name):
    path, batch = tiny.write(tmp_path / "m.gguf", name), stream([17, 1, 22, 24])
    one, two = trainee_of(path, "numpy"), trainee_of(path)
    routes = follow(one.engine, two.engine)
    (loss, want), (found, got) = gradients(one, batch), gradients(two, batch)
    assert found == pytest.approx(loss, rel=2e-3) and not routes
    least = min(cosines(two, got, want))
    assert least[0] >= COSINE, least


def test_gradients_of_a_real_model():
    """On English text. The gradients of queries and keys in the first layers are differences of large numbers: with
    float32 attention, too, rounding the linears' operands leaves some of them at 0.994 (torch's bf16 at 0.72)."""
    trainee = trainee_of(models.smollm2(), threads=2, tokens=128, spread=0.01, rank=8)
    ids = np.array(trainee.model.tokenizer.encode(TEXT)[:128], np.int32)
    batch = MicroBatch.of([(piece, np.ones(len(piece), bool)) for piece in (ids[:70], ids[70:79], ids[79:])])
    loss, want = gradients(trainee_of(models.smollm2(), "numpy", 2, 128, 0.01, rank=8), batch)
    found, got = gradients(trainee, batch)
    assert found == pytest.approx(loss, rel=2e-3)
    found = cosines(trainee, got, want)
    assert np.median([c for c, _ in found]) >= COSINE and min(found)[0] >= 0.99, min(found)
    assert np.vdot(got, want) >= COSINE * np.linalg.norm(got) * np.linalg.norm(want)


def test_a_head_that_is_trained(files):
    one, two = (trainee_of(files["llama"], device, modules="output,attn_q") for device in ("cpu-bf16", "numpy"))
    batch = stream([30, 20])
    found, want = gradients(one, batch), gradients(two, batch)
    assert found[0] == pytest.approx(want[0], rel=2e-3)
    assert min(cosines(one, found[1], want[1]))[0] >= COSINE


@pytest.mark.parametrize("threads", [1, 2])
def test_a_run_has_the_same_bits_again_and_when_resumed(files, threads):
    """Whoever of the workers takes a task, whatever was recomputed, and after buffers were given back."""

    def run(trainee, first, last):
        for step in range(first, last):
            for micro in range(2):
                trainee.accumulate(stream([20, 9 + step], seed=7 * step + micro), 0.02, step, micro)
            assert np.isfinite(trainee.update(1e-2, step))
        return {name: value.copy() for name, value in trainee.state().items()}

    want = run(trainee_of(files["qwen3"], threads=threads), 1, 9)
    again, half = (trainee_of(files["qwen3"], threads=threads) for _ in range(2))
    again.keep = 0
    state = run(half, 1, 5)
    again.load_state(state)
    again.engine.release()
    for name, value in run(again, 5, 9).items():
        np.testing.assert_array_equal(value, want[name])
    for name, value in run(half, 5, 9).items():
        np.testing.assert_array_equal(value, want[name])


def test_another_number_of_threads_takes_over(files):
    """Scratch of the old workers is not used by the new ones."""
    trainee, batch = trainee_of(files["gemma3"], threads=2), stream([40, 20])
    want = gradients(trainee, batch)[1]
    for count in (3, 1, 2):
        trainee.engine.use_threads(count)
        np.testing.assert_array_equal(gradients(trainee, batch)[1], want)


def test_training_learns_as_the_numpy_engine_does(files):
    batch, losses = stream([30, 34], silent=0), {}
    for device in ("numpy", "cpu-bf16"):
        trainee, losses[device] = trainee_of(files["llama"], device), []
        for step in range(1, 41):
            losses[device].append(trainee.accumulate(batch, 1 / batch.loss_tokens, step, 0) / batch.loss_tokens)
            assert np.isfinite(trainee.update(1e-2, step))
    assert losses["cpu-bf16"][-1] < 0.7 * losses["cpu-bf16"][0]
    np.testing.assert_allclose(losses["cpu-bf16"], losses["numpy"], rtol=0.02, atol=0.02)


@pytest.mark.filterwarnings("ignore:invalid value")
def test_what_is_not_finite_is_seen_and_changes_nothing(files):
    trainee, batch = trainee_of(files["llama"], threads=2), stream([30])
    trainee.accumulate(batch, 0.1, 1, 0)
    assert np.isfinite(trainee.update(1e-3, 1))
    for index in (0, trainee.layout.size_a + 1):
        for bad in (np.nan, np.inf):
            state = {name: value.copy() for name, value in trainee.state().items()}
            trainee.parameters[index] = bad
            trainee.accumulate(batch, 0.1, 2, 0)
            assert not np.isfinite(trainee.update(1e-3, 2))
            trainee.load_state(state)
            trainee.gradients[...] = 0
    trainee.accumulate(batch, 0.1, 2, 0)
    assert np.isfinite(trainee.update(1e-3, 2))


def test_dropout_is_a_mask_of_the_step(files):
    trainee, batch = trainee_of(files["qwen3"], threads=2, dropout=0.4), stream([30, 20])
    first, same, other = (gradients(trainee, batch, step) for step in (1, 1, 2))
    np.testing.assert_array_equal(first[1], same[1])
    assert first[0] != other[0] and trainee.evaluate(batch) != first[0]
    direction = first[1] / np.linalg.norm(first[1])  # the gradient is the slope of the masked loss
    losses, before = [], trainee.parameters.copy()
    for sign in (1, -1):
        trainee.parameters[...] = before + sign * 3e-2 * direction
        losses.append(0.1 * gradients(trainee, batch)[0])
    assert (losses[0] - losses[1]) / 6e-2 == pytest.approx(np.linalg.norm(first[1]), rel=0.05)


@pytest.mark.parametrize("name", EACH)
def test_generation_is_near_the_numpy_engines(files, name):
    adapter = trainee_of(files[name], "numpy").adapter()
    feeds, results = [[[5, 6, 7] * 9, [9]], [[8], [4]], [[], [3, 2, 1]], [[7], [7]]], []
    for device in ("numpy", "cpu-bf16"):
        decoder = load(files[name], device=device, threads=1).decoder(adapter=adapter, batch=2, context=64)
        results.append([decoder.feed(tokens) for tokens in feeds])
    for want, got in zip(*results, strict=True):
        np.testing.assert_array_equal(np.isnan(got), np.isnan(want))  # of sequences that got no token
        assert np.linalg.norm(np.nan_to_num(got - want)) <= 2e-2 * np.linalg.norm(np.nan_to_num(want))


# ---- memory ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "hold, sizes, keep, threads",
    [
        ("blocks", Sizes(), 2, 1),
        ("blocks", Sizes(), 2, 2),
        ("stream", LEAN, 0, 2),
        ("blocks", LEAN, 1, 1),
        ("blocks", Bf16Sizes(packed="both"), 2, 2),
        ("blocks", Bf16Sizes(packed="y"), 2, 1),
    ],
)
@pytest.mark.parametrize("tokens", [64, 200])
def test_a_step_takes_what_the_dry_run_said(files, name, hold, sizes, keep, threads, tokens):
    trainee = trainee_of(files[name], threads=threads, tokens=tokens)
    dry.check(trainee, stream([tokens], silent=0), hold, sizes, keep, threads == 1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("threads, kept", [(1, "both"), (3, "both"), (2, "y")])
def test_packed_weights_change_no_bit_and_are_held_once(files, name, threads, kept):
    batch, results = stream([17, 1, 22]), []
    for packed in ("", kept):
        trainee = trainee_of(files[name], threads=threads, dropout=0.2 if name == "qwen2" else 0.0)
        trainee.engine.sizes = Bf16Sizes(packed=packed)
        results.append([*gradients(trainee, batch), *gradients(trainee, batch, 2), trainee.evaluate(batch)])
        layers = [g for la in trainee.layers for g in la.groups]
        groups = [*layers, trainee.head]
        assert [g.packed is not None for g in groups] == [bool(packed)] * len(groups)
    for one, two in zip(*results):
        np.testing.assert_array_equal(one, two)
    assert all((w._blocks is None) == (kept == "both") for g in layers for w in g.weights)
    model = trainee.model
    loss = load(files[name], device="cpu-bf16", threads=threads).logits(batch.ids[:17])
    np.testing.assert_array_equal(model.logits(batch.ids[:17]), loss)  # of the model without its adapter


def test_little_memory_leaves_weights_in_their_blocks(files):
    """The packs are the fastest way, and the first to be given up."""
    model = load(files["llama"], device="cpu-bf16", threads=1)
    ways = model.engine.budget(model.weights, None).ways
    assert [getattr(w.sizes, "packed", "") for w in sorted(ways, key=lambda w: w.cost)][:3] == ["both", "y", ""]


def test_streams_of_every_length_use_the_same_buffers(files):
    trainee = trainee_of(files["llama"])
    trainee.accumulate(stream([64], silent=0), 0.1, 1, 0)
    held = trainee.engine.pool.bytes
    for seed in range(12):
        trainee.accumulate(stream([3 + 5 * seed], seed=seed), 0.1, 1, 0)
    assert trainee.engine.pool.bytes == held


def test_a_workers_scratch_grows_and_is_forgotten_when_given_back():
    engine = CpuBf16Engine(1)
    small, large = rows.aligned(engine, 0, "x", 10), rows.aligned(engine, 0, "x", 10000)
    assert rows.aligned(engine, 0, "x", 10) == large and small % 64 == large % 64 == 0
    held = engine._scratch[0]["x"]
    assert held.ctypes.data <= large and large + 4 * 10000 <= held.ctypes.data + held.nbytes
    engine.release()
    rows.aligned(engine, 0, "x", 20)
    assert engine._scratch[0]["x"].size < 10000


# ---- errors ------------------------------------------------------------------------------------------------


def test_what_cannot_be_is_said(monkeypatch):
    with pytest.raises(UserError, match="--dtype"):
        engine_for("cpu-bf16", dtype="fp16")
    with pytest.raises(UserError, match="--threads"):
        engine_for("cpu-bf16", threads=0)
    with pytest.raises(UserError, match="cpu-bf16:1"):
        engine_for("cpu-bf16:1")
    monkeypatch.setattr(cpu_bf16, "missing", lambda: "this processor lacks AVX-512 BF16: use --device numpy")
    with pytest.raises(UserError, match="--device numpy"):
        engine_for("cpu-bf16", threads=1)


def test_a_processor_without_the_instructions_is_named(monkeypatch):
    from numba.core.registry import cpu_target

    codegen = cpu_target.target_context.codegen()
    monkeypatch.setattr(type(codegen), "magic_tuple", lambda self: ("triple", "cpu", "+avx2,-avx512bf16"))
    assert "AVX-512 BF16" in cpu_bf16.missing() and "--device numpy" in cpu_bf16.missing()
