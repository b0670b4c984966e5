"""Training's promises that need no peer: packing changes nothing, nor does what is kept, held or split."""

import numpy as np
import pytest

from anytune.engine.numpy.sizes import LEAN, Sizes
from anytune.errors import UserError
from anytune.memory import MIB
from anytune.model import Lora
from tests.model.conftest import stream
from tests.support import dry, tiny

NAMES = tiny.EACH


def trainee_of(model, tokens=40, seed=3, **lora):
    made = model.trainee(Lora(**{"rank": 3, "alpha": 6.0, **lora}), ubatch=tokens)
    flat = made.parameters  # B starts at zero, and then A has no gradient: make it lively
    flat[made.layout.size_a :] = 0.1 * np.random.default_rng(seed).standard_normal(flat.size - made.layout.size_a)
    return made


def gradients(trainee, batch, **change):
    for name, value in change.items():
        setattr(trainee.engine if name in ("sizes", "room") else trainee, name, value)
    trainee.gradients[...] = 0
    loss = trainee.accumulate(batch, 0.1, 1, 0)
    return loss, trainee.gradients.copy()


def slope(trainee, batch, direction, step):
    """The loss's central difference along a direction, scaled as gradients() scales it."""
    start, unit, losses = trainee.parameters.copy(), direction / np.linalg.norm(direction), []
    for sign in (1, -1):
        trainee.parameters[...] = start + sign * step * unit
        losses.append(0.1 * trainee.evaluate(batch))
    return (losses[0] - losses[1]) / (2 * step)


def same(one, two, limit=2e-5):
    assert one[0] == pytest.approx(two[0], rel=1e-5)
    assert np.linalg.norm(one[1] - two[1]) <= limit * np.linalg.norm(two[1])


@pytest.mark.parametrize("name", NAMES)
def test_gradients_along_a_random_direction(tiny_model, name):
    """The loss's slope along the gradient is the gradient's length (in float32: a few tenths of a percent)."""
    trainee, batch = trainee_of(tiny_model(name)), stream([17, 1, 22])
    _, gradient = gradients(trainee, batch)
    # the norm behind a head's result bends the loss, another choice of experts breaks it
    small = dict.fromkeys(("qwen35", "qwen3moe", "qwen35moe", "gpt-oss", "glm4moe", "deepseek2"), 1e-4)
    step = (small | {"gemma4": 5e-3}).get(name, 2e-2)
    assert slope(trainee, batch, gradient, step) == pytest.approx(np.linalg.norm(gradient), rel=5e-3)


@pytest.mark.parametrize("name", NAMES)
def test_packed_examples_are_as_if_alone(tiny_model, name):
    trainee, lengths = trainee_of(tiny_model(name)), [15, 9, 16]
    batch = stream(lengths)
    packed = gradients(trainee, batch)
    total, sum_of = 0.0, np.zeros_like(packed[1])
    for low, high in zip(batch.starts, batch.starts[1:]):
        alone = stream([high - low])
        alone.ids[...], alone.targets[...] = batch.ids[low:high], batch.targets[low:high]
        loss, gradient = gradients(trainee, alone)
        total, sum_of = total + loss, sum_of + gradient
    same((total, sum_of), packed, 1e-4 if name.startswith("qwen35") else 2e-5)  # the delta net's chunks begin elsewhere


@pytest.mark.parametrize("name", NAMES)
def test_recomputing_gives_the_same_bits(tiny_model, name):
    trainee, batch = trainee_of(tiny_model(name)), stream([30, 10])
    everything = gradients(trainee, batch)
    for keep in (0, 1):
        again = gradients(trainee, batch, keep=keep)
        assert again[0] == everything[0]
        np.testing.assert_array_equal(again[1], everything[1])


def test_holds_pieces_rooms_and_threads_change_only_rounding(tiny_model):
    batch, want = stream([30, 10]), None
    for threads, compiled in ((1, True), (3, True), (2, False)):
        model = tiny_model("qwen3", threads=threads, compiled=compiled)
        for hold in ("blocks", "stream", "float32"):
            trainee = trainee_of(model)
            model.hold(hold)
            for change in ({}, {"sizes": LEAN}, {"room": 0}):
                got = gradients(trainee, batch, **change)
                want = want or got
                same(got, want)


def test_modules_match_by_exact_name_and_order(tiny_model):
    model = tiny_model("qwen3")
    names = model.trainee(Lora(rank=2, modules="attn_q,ffn_down"), ubatch=8).names
    assert names == [f"blk.{i}.{m}.weight" for i in range(model.config.layers) for m in ("attn_q", "ffn_down")]
    with pytest.raises(UserError, match="attn_x"):
        model.trainee(Lora(modules="attn_x"), ubatch=8)
    with pytest.raises(UserError, match="no experts"):
        model.trainee(Lora(modules="all,experts"), ubatch=8)


def test_all_are_not_the_experts(tiny_model):
    model = tiny_model("qwen3moe")
    plain, experts = (set(model.trainee(Lora(rank=2, modules=m), ubatch=8).names) for m in ("all", "experts"))
    assert experts == {f"blk.{i}.ffn_{part}_exps.weight" for i in range(2) for part in ("gate", "up", "down")}
    assert not plain & experts
    assert set(model.trainee(Lora(rank=2, modules="all,experts"), ubatch=8).names) == plain | experts


@pytest.mark.parametrize("modules", ["attn_q", "attn_o", "ffn_up", "ffn_down", "attn_k,ffn_gate"])
def test_a_subset_has_the_gradients_of_the_whole(tiny_model, modules):
    model, batch = tiny_model("llama"), stream([30, 10])
    part = trainee_of(model, modules=modules)
    part.parameters[part.layout.size_a :] = 0  # B = 0: the model is the base in both
    whole = trainee_of(model)
    for pair in whole.layout.pairs:
        pair.view_b(whole.parameters)[...] = 0
        for other in part.layout.pairs:
            if other.name == pair.name:
                pair.view_a(whole.parameters)[...] = other.view_a(part.parameters)
    loss, gradient = gradients(part, batch)
    loss_all, gradient_all = gradients(whole, batch)
    assert loss == pytest.approx(loss_all, rel=1e-6)
    pairs = {p.name: p for p in whole.layout.pairs}
    for pair in part.layout.pairs:
        np.testing.assert_allclose(pair.view_b(gradient), pairs[pair.name].view_b(gradient_all), rtol=1e-3, atol=1e-6)
    assert np.abs(gradient).max() > 0


def test_output_head_is_trained_where_it_is_a_matrix_of_its_own(tiny_model):
    with pytest.raises(UserError, match="embedding"):
        tiny_model("qwen2").trainee(Lora(modules="output"), ubatch=8)
    model = tiny_model("llama")
    trainee, batch = trainee_of(model, modules="output"), stream([30, 10])
    _, gradient = gradients(trainee, batch)
    assert slope(trainee, batch, gradient, 1e-2) == pytest.approx(np.linalg.norm(gradient), rel=5e-3)


def test_every_tensor_starts_from_its_own_stream(tiny_model):
    model = tiny_model("llama")
    one, two, other = (model.trainee(Lora(rank=3, seed=s), ubatch=8).adapter() for s in (0, 0, 1))
    starts = [a.tobytes() for a, b in one.tensors.values()]
    assert len(set(starts)) == len(starts) and all(not b.any() for _, b in one.tensors.values())
    assert starts == [a.tobytes() for a, _ in two.tensors.values()]
    assert not set(starts) & {a.tobytes() for a, _ in other.tensors.values()}


def test_scales(tiny_model):
    assert Lora(rank=16, alpha=32).scale == 2 and Lora(rank=16, alpha=32, rslora=True).scale == 8
    for bad in (dict(rank=0), dict(alpha=0), dict(alpha=float("nan")), dict(dropout=1.0), dict(plus_ratio=-1)):
        with pytest.raises(UserError):
            Lora(**bad)


def test_lora_plus_moves_b_faster(tiny_model):
    moves = []
    for ratio in (1.0, 4.0):
        trainee = trainee_of(tiny_model("llama"), plus_ratio=ratio)
        before = trainee.parameters.copy()
        trainee.gradients[...] = 1e-3
        trainee.update(1e-3, 1, max_grad_norm=0)
        moves.append(trainee.parameters - before)
    cut = trainee.layout.size_a
    np.testing.assert_allclose(moves[1][:cut], moves[0][:cut])
    np.testing.assert_allclose(moves[1][cut:], 4 * moves[0][cut:], rtol=1e-3)


def test_update_clips_refuses_nan_and_zeroes(tiny_model):
    trainee = trainee_of(tiny_model("llama"))
    trainee.gradients[...] = 1.0
    norm = np.sqrt(trainee.n_parameters)
    assert trainee.update(1e-3, 1, max_grad_norm=1.0) == pytest.approx(norm, rel=1e-6)
    assert not trainee.gradients.any() and np.abs(trainee.first).max() == pytest.approx(0.1 / norm, rel=1e-4)
    before = {k: v.copy() for k, v in trainee.state().items()}
    trainee.gradients[5] = np.nan
    assert np.isnan(trainee.update(1e-3, 2))
    for key, value in trainee.state().items():
        np.testing.assert_array_equal(value, before[key])


def test_state_restores_and_rejects(tiny_model):
    model, batch = tiny_model("llama"), stream([20])
    one, two = trainee_of(model), trainee_of(model, seed=9)
    one.accumulate(batch, 0.1, 1, 0)
    one.update(1e-2, 1)
    two.load_state({k: v.copy() for k, v in one.state().items()})
    for trainee in (one, two):
        trainee.accumulate(batch, 0.1, 2, 0)
        trainee.update(1e-2, 2)
    np.testing.assert_array_equal(one.parameters, two.parameters)
    with pytest.raises(UserError, match="parameters"):
        two.load_state({"parameters": np.zeros(3, np.float32)})


@pytest.mark.parametrize("name", ["qwen35", "qwen35moe", "gpt-oss", "deepseek2"])
def test_a_continued_run_ends_in_the_same_bytes(tiny_model, name):
    model, batches = tiny_model(name), [stream([20, 9], seed=s) for s in range(4)]
    model.engine.release()

    def steps(trainee, numbers):
        for step in numbers:
            trainee.accumulate(batches[step - 1], 0.1, step, 0)
            trainee.update(1e-2, step)
        return {key: value.copy() for key, value in trainee.state().items()}

    whole = steps(trainee_of(model, dropout=0.1), (1, 2, 3, 4))
    half, other = steps(trainee_of(model, dropout=0.1), (1, 2)), trainee_of(model, seed=8, dropout=0.1)
    other.load_state(half)
    for key, value in steps(other, (3, 4)).items():
        np.testing.assert_array_equal(value, whole[key])


def test_an_adapter_goes_on_where_it_was(tiny_model):
    model, batch = tiny_model("llama"), stream([30])
    first = trainee_of(model, rslora=True)
    adapter = first.adapter()
    second = model.trainee(Lora(rank=99), adapter=adapter, ubatch=40)
    assert second.evaluate(batch) == first.evaluate(batch)
    with pytest.raises(UserError, match="trained on"):
        tiny_model("gemma3").trainee(Lora(), adapter=adapter, ubatch=8)


def test_no_loss_no_gradient(tiny_model):
    trainee, batch = trainee_of(tiny_model("llama")), stream([12], silent=1.1)
    assert gradients(trainee, batch)[0] == 0 and not trainee.gradients.any() and trainee.evaluate(batch) == 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("hold, sizes, keep", [("blocks", Sizes(), 2), ("stream", LEAN, 0), ("blocks", LEAN, 1)])
def test_a_step_takes_what_the_dry_run_said(tiny_model, name, hold, sizes, keep):
    model = tiny_model(name, threads=1)
    dry.check(trainee_of(model, tokens=200), stream([200], silent=0), hold, sizes, keep)


def test_a_budget_that_cannot_be_met_is_refused(tiny_model):
    model = tiny_model("llama")
    model.memory = 5 * MIB
    with pytest.raises(UserError, match="--memory"):
        model.trainee(Lora(), ubatch=8)


def test_streams_of_every_length_use_the_same_buffers(tiny_model):
    """What a batch needs must not depend on how many of its tokens carry loss: memory would creep."""
    trainee = trainee_of(tiny_model("llama"), tokens=64)
    trainee.accumulate(stream([64], silent=0), 0.1, 1, 0)
    held = trainee.engine.pool.bytes
    for seed in range(12):
        trainee.accumulate(stream([3 + 5 * seed], seed=seed), 0.1, 1, 0)
    assert trainee.engine.pool.bytes == held
