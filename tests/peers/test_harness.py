"""The two second opinions agree with each other on every tiny model, so a later mismatch is ours."""

import numpy as np
import pytest

from tests.support import tiny, twin
from tests.support.distributions import kl
from tests.support.require import need

GELU_TABLE = 1e-5  # llama.cpp reads GELU from a table of 16-bit floats


@pytest.mark.parametrize("name", tiny.SHAPES)
def test_llamacpp_and_transformers_agree(case, name):
    c = case(name)
    limit = GELU_TABLE if name.startswith("gemma") else 1e-8 if name.startswith("qwen35") else 1e-9
    assert c.llamacpp.std() > 1, "logits that say nothing"
    assert kl(c.transformers, c.llamacpp).max() < limit


def test_rows_left_permuted_are_seen(case, monkeypatch):
    c = case("llama")
    monkeypatch.setattr(twin, "heads_of", lambda *_: 0)
    assert kl(c.llamacpp, twin.logits(twin.transformers_model(c.path), c.ids)).max() > 1e-2


def test_window_acts(case):
    c = case("gemma3")
    model = twin.transformers_model(c.path)
    for layer in model.model.layers:
        layer.self_attn.sliding_window = None
    model.config.sliding_window = 64
    distance = kl(c.llamacpp, twin.logits(model, c.ids))
    assert distance[:8].max() < GELU_TABLE and distance[8:].max() > 1e-3


def test_rope_factors_are_those_of_llama3(case):
    transformers = need("transformers")
    c = case("llama3")
    values, weights = twin.read(c.path)
    config = twin.config(values, weights)
    config.rope_parameters = {"rope_type": "llama3", "rope_theta": values["llama.rope.freq_base"], **tiny.LLAMA3}
    published = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(config).inv_freq
    ours = twin.transformers_model(c.path).model.rotary_emb.inv_freq
    np.testing.assert_allclose(ours, published, rtol=1e-6)
    assert ours.shape == (16,) and weights["rope_freqs.weight"].max() == pytest.approx(8)
    assert len(set(weights["rope_freqs.weight"].tolist())) > 2, "no frequency between the two bands"
