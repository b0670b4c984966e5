"""A mixture of experts on torch, expert after expert and all as one, against the NumPy engine."""

import numpy as np
import pytest

from anytune.engine.devices import engine_for
from anytune.errors import UserError
from anytune.gguf import GGUF
from anytune.model import Lora, Model, load
from tests.model.conftest import stream
from tests.support import tiny
from tests.support.require import need, need_bf16_products
from tests.support.routes import follow

need("torch")
MODULES = "all,experts"
MODELS = ["qwen3moe", "qwen35moe", "gpt-oss", "gemma4-experts", "deepseek2"]


@pytest.fixture(scope="module", params=MODELS)
def path(request, tmp_path_factory):
    meta = tiny.GENTLE.get(request.param, {})
    return tiny.write(tmp_path_factory.mktemp("experts") / "m.gguf", request.param, "Q8_0", **meta)


def on_torch(path, grouped: bool, dtype: str = "f32") -> Model:
    engine = engine_for("cpu-torch", dtype=dtype)
    engine.grouped = grouped
    return Model(GGUF.open(path), engine)


def gradients(model, dropout: float = 0.0):
    """(loss, gradients) of one micro-batch of a lively adapter."""
    trainee = model.trainee(Lora(rank=3, alpha=6.0, modules=MODULES, dropout=dropout), ubatch=40)
    adapter, random = trainee.adapter(), np.random.default_rng(0)
    for _, b in adapter.tensors.values():
        b[...] = 0.1 * random.standard_normal(b.shape)
    trainee = model.trainee(Lora(dropout=dropout), adapter, ubatch=40)
    loss = float(trainee.accumulate(stream([17, 1, 22]), 0.1, 1, 0))
    return loss, model.engine.host(trainee.gradients)


@pytest.mark.parametrize("grouped", [False, True])
def test_gradients_are_numpys(path, grouped):
    want, got = gradients(load(path, device="numpy", threads=1)), gradients(on_torch(path, grouped))
    assert got[0] == pytest.approx(want[0], rel=1e-5)
    assert np.linalg.norm(got[1] - want[1]) < 1e-4 * np.linalg.norm(want[1])


# limit: adapters drawn with four seeds are off by up to 0.040 on torch and 0.023 on the other
@pytest.mark.parametrize("device, limit", [("cpu-torch", 0.06), ("cpu-bf16", 0.035)])
def test_bf16_is_near(path, device, limit):
    """With the same experts. (The bf16 CPU engine's products of experts are the NumPy engine's.)"""
    if device == "cpu-bf16":
        need_bf16_products()
    one = load(path, device="numpy", threads=1)
    two = on_torch(path, True, "bf16") if device == "cpu-torch" else load(path, device=device, threads=1)
    routes = follow(one.engine, two.engine)
    want, got = gradients(one), gradients(two)
    assert got[0] == pytest.approx(want[0], rel=4e-3) and not routes
    assert np.linalg.norm(got[1] - want[1]) < limit * np.linalg.norm(want[1])


@pytest.mark.parametrize("grouped", [False, True])
def test_dropout_acts_on_experts(path, grouped):
    model = on_torch(path, grouped)
    one, two = gradients(model, 0.5), gradients(model, 0.5)
    assert one[0] == two[0] != gradients(model)[0]
    np.testing.assert_array_equal(one[1], two[1])


@pytest.mark.parametrize("grouped", [False, True])
def test_decoding_is_the_whole(path, grouped):
    model, ids = on_torch(path, grouped), np.random.default_rng(4).integers(5, 300, 30).tolist()
    whole, decoder = model.logits(ids), model.decoder(batch=1, context=64)
    np.testing.assert_allclose(decoder.feed([ids[:20]])[0], whole[19], rtol=1e-3, atol=1e-3)
    for at in range(20, 30):
        np.testing.assert_allclose(decoder.feed([[ids[at]]])[0], whole[at], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("device", ["fpga-sim"])
def test_an_engine_without_experts_says_which_have_them(path, device):
    with pytest.raises(UserError, match="--device numpy"):
        load(path, device=device)
