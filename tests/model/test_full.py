"""Training of a model's own weights: gradients of every tensor, subsets, optimizers, and the GGUF that comes out."""

import numpy as np
import pytest

from anytune.engine.numpy.sizes import LEAN, Sizes
from anytune.errors import UserError
from anytune.gguf import GGUF
from anytune.model import Full
from anytune.train.trained_model import TrainedModel
from tests.model.conftest import stream
from anytune.model.architectures import ARCHITECTURES
from tests.support import dry, tiny

NAMES = [
    name
    for name in (*tiny.EACH, "llama-tied")
    if name != "qwen35" and not ARCHITECTURES[tiny.SHAPES[name].arch].experts == "all"
]


def gradients(trainee, batch, **change):
    for name, value in change.items():
        setattr(trainee.engine if name in ("sizes", "room") else trainee, name, value)
    for gradient in trainee.gradients.values():
        gradient[...] = 0
    loss = trainee.accumulate(batch, 0.1, 1, 0)
    return loss, {name: gradient.copy() for name, gradient in trainee.gradients.items()}


def slope(trainee, batch, name, direction, step):
    """The loss's central difference along a direction of one tensor, scaled as gradients() scales it."""
    values, losses = trainee.parameters[name], []
    start = values.copy()
    for sign in (1, -1):
        values[...] = start + sign * step * direction / np.linalg.norm(direction)
        losses.append(0.1 * trainee.evaluate(batch))
    values[...] = start
    return (losses[0] - losses[1]) / (2 * step)


@pytest.mark.parametrize("name", NAMES)
def test_gradient_of_every_tensor(tiny_model, name):
    """The loss's slope along each tensor's gradient is the gradient's length; only rope's divisors have none."""
    model = tiny_model(name)
    trainee, batch = model.full_trainee(Full(), ubatch=40), stream([17, 1, 22])
    frozen = {t for t in model.gguf.tensors if t.startswith("rope_") or t.endswith("output_scale.weight")}
    assert set(trainee.names) == set(model.gguf.tensors) - frozen
    assert "all weights are trained" in trainee.estimate.text
    _, found = gradients(trainee, batch)
    for tensor, gradient in found.items():
        size = np.linalg.norm(gradient)
        assert size > 0, tensor
        step = 2e-3 * max(1.0, np.linalg.norm(trainee.parameters[tensor]))
        assert slope(trainee, batch, tensor, gradient, step) == pytest.approx(size, rel=2e-2, abs=2e-4), tensor


@pytest.mark.parametrize("name", ["qwen2", "gemma3"])
def test_what_is_frozen_changes_no_gradient_and_gets_none(tiny_model, name):
    model, batch = tiny_model(name), stream([30, 10])
    loss, every = gradients(model.full_trainee(Full(), ubatch=40), batch)
    last = model.config.layers - 1
    for full in (
        Full("norm"),
        Full("embed"),
        Full("attn_q,bias"),
        Full("ffn_down", layers=1),
        Full(layers=1),
        Full("all", 2),
    ):
        if full.modules.endswith("bias") and name != "qwen2":
            full = Full("attn_q")
        trainee = model.full_trainee(full, ubatch=40)
        assert "all weights are trained" not in trainee.estimate.text
        if full.layers == 1:
            assert all(f"blk.{last}." in n or not n.startswith("blk.") for n in trainee.names)
            assert "token_embd.weight" not in trainee.names
        for keep in (0, trainee.keep):
            again, some = gradients(trainee, batch, keep=keep)
            assert again == pytest.approx(loss, rel=1e-6) and set(some) == set(trainee.names)
            for tensor, gradient in some.items():
                np.testing.assert_allclose(gradient, every[tensor], rtol=0, atol=2e-5 * np.linalg.norm(every[tensor]))


def test_pieces_threads_and_kernels_change_only_rounding(tiny_model):
    batch, want = stream([30, 10]), None
    for threads, compiled in ((1, True), (3, True), (2, False)):
        trainee = tiny_model("gemma3", threads=threads, compiled=compiled).full_trainee(Full(), ubatch=40)
        for change in ({}, {"sizes": LEAN}, {"sizes": Sizes(tile=64, wide=64, head=96, scores=64, logits=0)}):
            _, got = gradients(trainee, batch, **change)
            want = want or got
            for name in want:
                assert np.linalg.norm(got[name] - want[name]) <= 2e-5 * np.linalg.norm(want[name]), name


@pytest.mark.parametrize("optimizer, rate", [("adamw", 3e-3), ("adamw8bit", 3e-3), ("adafactor", 3e-3)])
def test_optimizers_learn_a_batch_and_resume_to_the_bit(tiny_model, optimizer, rate):
    trainee, batch = tiny_model("qwen3").full_trainee(Full(optimizer=optimizer), ubatch=40), stream([30, 10])
    first = trainee.evaluate(batch)
    for step in range(1, 9):
        if step == 5:
            kept = {key: array.copy() for key, array in trainee.state().items()}
        trainee.accumulate(batch, 1 / 30, step, 0)
        trainee.update(rate, step, weight_decay=0.01)
    assert trainee.evaluate(batch) < 0.7 * first
    ends = {key: array.copy() for key, array in trainee.state().items()}
    trainee.load_state(kept)
    for step in range(5, 9):
        trainee.accumulate(batch, 1 / 30, step, 0)
        trainee.update(rate, step, weight_decay=0.01)
    for key, array in trainee.state().items():
        np.testing.assert_array_equal(array, ends[key])


def test_a_norm_that_is_not_finite_changes_nothing(tiny_model):
    trainee = tiny_model("llama").full_trainee(Full(), ubatch=8)
    before = {key: array.copy() for key, array in trainee.state().items()}
    trainee.gradients["output_norm.weight"][0] = np.inf
    assert trainee.update(1e-3, 1) == np.inf
    for key, array in trainee.state().items():
        np.testing.assert_array_equal(array, before[key])


def test_a_checkpoint_of_another_run_is_refused(tiny_model):
    model = tiny_model("llama")
    state = model.full_trainee(Full("norm"), ubatch=8).state()
    for other in (Full(), Full(optimizer="adafactor")):
        with pytest.raises(UserError, match="--train-modules"):
            model.full_trainee(other, ubatch=8).load_state(state)


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0", None])
def test_the_file_that_comes_out(tiny_model, tmp_path, kind):
    model = tiny_model("gemma3")
    trainee, batch = model.full_trainee(Full(), ubatch=40), stream([30, 10])
    for step in (1, 2):
        trainee.accumulate(batch, 1 / 30, step, 0)
        trainee.update(1e-3, step)
    TrainedModel(trainee.model.gguf, trainee.values(), kind).save(tmp_path / "out.gguf")
    with GGUF.open(tmp_path / "out.gguf") as made:
        assert list(made.tensors) == list(model.gguf.tensors)
        changed = {key for key in made.metadata if not np.array_equal(made.metadata[key], model.gguf.metadata.get(key))}
        assert changed <= {"general.name", "general.file_type", "general.quantization_version"}
        assert set(model.gguf.metadata) <= set(made.metadata)
        for name, values in trainee.parameters.items():
            limit = {"F32": 0, None: 0, "F16": 1e-3, "Q8_0": 1e-2}[kind]
            got = made.float32(name).reshape(-1)
            assert np.linalg.norm(got - values) <= limit * np.linalg.norm(values), name


@pytest.mark.parametrize(
    "full, words",
    [
        (dict(modules="attn_x"), "--train-modules takes"),
        (dict(modules=""), "nothing to train"),
        (dict(layers=0), "layers 0 is not valid"),
        (dict(optimizer="sgd"), "optimizer takes"),
    ],
)
def test_wrong_choices(tiny_model, full, words):
    with pytest.raises(UserError, match=words):
        tiny_model("llama").full_trainee(Full(**full), ubatch=8)


def test_a_tied_head_and_absent_biases_are_told(tiny_model):
    with pytest.raises(UserError, match="use embed"):
        tiny_model("llama-tied").full_trainee(Full("output"), ubatch=8)
    with pytest.raises(UserError, match="none of the tensors"):
        tiny_model("llama").full_trainee(Full("bias"), ubatch=8)


@pytest.mark.parametrize("name", ["llama", "gemma3"])
@pytest.mark.parametrize("sizes, keep", [(Sizes(), 2), (LEAN, 0)])
def test_a_step_takes_what_the_dry_run_said(tiny_model, name, sizes, keep):
    trainee = tiny_model(name, threads=1).full_trainee(Full(), ubatch=200)
    dry.check(trainee, stream([200], silent=0), "blocks", sizes, keep)
