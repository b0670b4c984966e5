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

need("torch")
MODULES = "all,experts"
MODELS = ["qwen3moe", "qwen35moe", "gpt-oss", "gemma4-experts", "deepseek2"]


@pytest.fixture(scope="module", params=MODELS)
def path(request, tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("experts") / "m.gguf", request.param, "Q8_0")


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


@pytest.mark.parametrize("grouped, dtype, limit", [(False, "f32", 1e-4), (True, "f32", 1e-4), (True, "bf16", 0.05)])
def test_gradients_are_numpys(path, grouped, dtype, limit):
    if dtype == "bf16" and GGUF.open(path).metadata["general.architecture"] in ("qwen35moe", "deepseek2"):
        limit = 0.3  # a norm behind a delta net's heads makes much of roundings, some tokens go to other experts
    want, got = gradients(load(path, device="numpy", threads=1)), gradients(on_torch(path, grouped, dtype))
    assert got[0] == pytest.approx(want[0], rel=limit / 5)
    assert np.linalg.norm(got[1] - want[1]) < limit * np.linalg.norm(want[1])


def test_cpu_bf16_is_near(path):
    """Products of experts are those of the NumPy engine there."""
    need_bf16_products()
    limit = 0.3 if GGUF.open(path).metadata["general.architecture"] in ("qwen35moe", "deepseek2") else 0.05
    want, got = (gradients(load(path, device=device, threads=1)) for device in ("numpy", "cpu-bf16"))
    assert got[0] == pytest.approx(want[0], rel=limit / 5)
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
