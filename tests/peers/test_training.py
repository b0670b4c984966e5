"""Gradients and losses against peft on the same weights, the same adapter and the same order of the data."""

import numpy as np
import pytest

import anytune
from tests.peers.batches import examples, micro_batch, targets_of
from tests.peers.lora import PeftTwin
from tests.support import models, tiny
from tests.support.require import need

RANK, ALPHA = 8, 16.0
ADAM = dict(beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0)


def trainee_of(path, tokens: int, adapter=None, threads: int = 1, **lora):
    from anytune.model import Lora
    from anytune.model.modules import EXPERTS

    model = anytune.load(path, device="numpy", threads=threads)
    experts = [name for name in EXPERTS if f"blk.{model.config.layers - 1}.{name}.weight" in model.gguf.tensors]
    return model.trainee(
        Lora(rank=RANK, alpha=ALPHA, modules=["all", *experts], **lora), adapter=adapter, ubatch=tokens
    )


def lively(adapter, rng):
    """The same adapter with B drawn at random, so that A's gradient is not zero at the first step."""
    for a, b in adapter.tensors.values():
        a[...] = rng.standard_normal(a.shape) * a.shape[-1] ** -0.5
        b[...] = rng.standard_normal(b.shape) * 0.1
    return adapter


def cosine(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x.astype(np.float64).ravel(), y.astype(np.float64).ravel()
    return float(x @ y / (np.linalg.norm(x) * np.linalg.norm(y)))


@pytest.mark.parametrize("name, rslora", [*((name, False) for name in tiny.SHAPES), ("llama", True)])
def test_first_gradients(tiny_file, name, rslora):
    need("torch").set_num_threads(1)
    path, rng = tiny_file(name), np.random.default_rng(3)
    ids = examples(rng, 3, 23, 320)
    targets = targets_of(ids, silent=7)
    adapter = lively(trainee_of(path, ids.size, rslora=rslora).adapter(), rng)
    trainee = trainee_of(path, ids.size, adapter, rslora=rslora)
    batch = micro_batch(ids, targets)
    loss = trainee.accumulate(batch, 1 / batch.loss_tokens, 1, 0) / batch.loss_tokens
    gradients = gradients_of(trainee)

    twin = PeftTwin(path, adapter.tensors, RANK, ALPHA, rslora)
    assert loss == pytest.approx(twin.loss(ids, targets).item(), rel=1e-5)
    for tensor, pair in twin.gradients(ids, targets).items():
        for side, mine, theirs in zip("ab", gradients[tensor], pair, strict=True):
            assert cosine(mine, theirs) >= 0.9999, f"{tensor} {side}"
            assert np.linalg.norm(mine) == pytest.approx(np.linalg.norm(theirs), rel=1e-3), f"{tensor} {side}"


def gradients_of(trainee) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{base tensor: (gradient of a, of b)}: AdamW's first moment, which with beta1 = 0 is the gradient."""
    trainee.update(0.0, 1, max_grad_norm=0.0, **ADAM | {"beta1": 0.0})
    state = {name: value.copy() for name, value in trainee.state().items()}
    trainee.load_state(state | {"parameters": state["first_moment"]})
    return trainee.adapter().tensors


def losses_of(trainee, batches, lr: float) -> list[float]:
    losses = []
    for step, (ids, targets) in enumerate(batches, 1):
        batch = micro_batch(ids, targets)
        losses.append(trainee.accumulate(batch, 1 / batch.loss_tokens, step, 0) / batch.loss_tokens)
        trainee.update(lr, step, max_grad_norm=1.0, **ADAM)
    return losses


def fifty(rng, count: int, length: int, vocab: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Fifty batches that come round every five, so that the loss falls."""
    ids = [examples(rng, count, length, vocab) for _ in range(5)]
    return [(x, targets_of(x, silent=length // 3)) for x in ids] * 10


@pytest.mark.parametrize("name", [*tiny.EACH, "gemma4-experts"])
def test_fifty_steps(tiny_file, name):
    need("torch").set_num_threads(1)
    path = tiny_file(name)
    batches = fifty(np.random.default_rng(5), 4, 24, 320)
    trainee = trainee_of(path, batches[0][0].size)
    lr = {"qwen35": 1e-3, "qwen35moe": 3e-4}.get(name, 2e-3)  # its loss bends so much that roundings grow
    theirs = PeftTwin(path, trainee.adapter().tensors, RANK, ALPHA).train(batches, lr=lr)
    mine = losses_of(trainee, batches, lr=lr)
    np.testing.assert_allclose(mine, theirs, rtol=5e-3)
    assert np.mean(mine[-5:]) < 0.8 * np.mean(mine[:5]), "nothing was learned, so nothing was compared"


def test_fifty_steps_of_smollm2():
    need("torch").set_num_threads(2)
    path = models.smollm2()
    batches = fifty(np.random.default_rng(6), 2, 24, 49152)
    trainee = trainee_of(path, batches[0][0].size, threads=2)
    theirs = PeftTwin(path, trainee.adapter().tensors, RANK, ALPHA).train(batches, lr=1e-4)
    mine = losses_of(trainee, batches, lr=1e-4)
    np.testing.assert_allclose(mine, theirs, rtol=5e-3)
    assert np.mean(mine[-5:]) < 0.8 * np.mean(mine[:5])
