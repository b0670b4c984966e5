"""verify: its arithmetic against definitions, its verdict on adapters that are right and that are wrong."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import anytune
from anytune.llamacpp import judge
from anytune.llamacpp import verify as module
from anytune.errors import UserError
from anytune.llamacpp.verify import _tokens, compare, compare_change, log_softmax, report, verify_then_exact, verify
from tests.cli.conftest import cli  # noqa: F401 (a fixture)
from tests.support import tiny
from tests.support.distributions import kl
from tests.support.require import need

RNG = np.random.default_rng(7)


def logits(n=4, vocab=50, scale=3.0, seed=0):
    return np.random.default_rng(seed).normal(0, scale, (n, vocab)).astype(np.float32)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.001, 3))
def test_the_distance_is_kl(seed, noise):
    x = logits(vocab=600, seed=seed)  # more than a partition of NumPy sorts whole
    y = x + noise * logits(vocab=600, scale=1.0, seed=seed + 1)
    found = compare(log_softmax(x), log_softmax(y))
    np.testing.assert_allclose(found.kl, kl(x, y), rtol=1e-6, atol=1e-12)
    np.testing.assert_array_equal(found.agree, x.argmax(1) == y.argmax(1))
    best = np.sort(x.astype(np.float64), axis=1)
    np.testing.assert_allclose(found.margin, best[:, -1] - best[:, -2], atol=1e-6)


def test_a_change_is_judged_by_its_own_size():
    base, small = log_softmax(logits()), 1e-3 * logits(seed=1)
    other = log_softmax(base + small)
    same = compare_change((base, other), (base, other), 1e-5, 0.0)
    assert same["ok"] and same["relative_error"] < 1e-9 and same["correlation"] > 1 - 1e-9
    doubled = compare_change((base, other), (base, log_softmax(base + 2 * small)), 1e-5, 0.0)
    assert not doubled["ok"] and doubled["correlation"] > 0.999 and 0.9 < doubled["relative_error"] < 1.1
    nothing = compare_change((base, base), (base, base), 1e-5, 0.0)
    assert not nothing["ok"] and "changes nothing" in nothing["remark"]
    drowned = compare_change((base, base), (base, other), 1e-2, 1.0)
    assert drowned["inconclusive"] and "--exact" in drowned["remark"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """name, type -> (model file, file of a random adapter on every linear)."""
    need("xllamacpp")
    folder = tmp_path_factory.mktemp("verify")

    def make(name, type="F32"):
        path = tiny.write(folder / f"{name}-{type}.gguf", name, type)
        with anytune.load(path, threads=1).gguf as gguf:
            names = anytune.Lora().tensors(gguf, tiny.SHAPES[name].layers)
            pairs = {}
            for tensor in names:
                out, wide = gguf.tensors[tensor].shape
                pairs[tensor] = (
                    RNG.normal(0, wide**-0.5, (4, wide)).astype(np.float32),
                    RNG.normal(0, 0.3, (out, 4)).astype(np.float32),
                )
        adapter = anytune.Adapter(pairs, rank=4, alpha=8.0, architecture=tiny.SHAPES[name].arch)
        adapter.save(folder / f"{name}-{type}.lora.gguf")
        return path, folder / f"{name}-{type}.lora.gguf"

    return make


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3"])
def test_llamacpp_agrees_on_exact_files_and_adapters(files, name):
    path, adapter = files(name)
    facts = verify(anytune.load(path, threads=1), adapter, positions=6, threads=1)
    assert facts["ok"], facts
    assert facts["base"]["kl_max"] < 1e-5 and facts["with_adapter"]["kl_max"] < 1e-5
    assert facts["change"]["rms_llamacpp"] > 0.01 and facts["change"]["relative_error"] < 0.02


def test_an_adapter_of_another_file_is_noticed(files, tmp_path):
    path, file = files("llama")
    model = anytune.load(path, threads=1)
    for sha256, expected in ((None, None), (model.gguf.sha256(), True), ("0" * 64, False)):
        adapter = dataclasses.replace(anytune.Adapter.load(file), base_sha256=sha256)
        facts = verify(model, adapter, positions=1, threads=1)
        assert facts["trained_on_this_file"] is expected and facts["ok"]
        assert ("another file" in report(facts)) == (expected is False)


@pytest.mark.parametrize("wrong", ["rows", "scale", "nothing"])
def test_a_wrong_adapter_fails(files, wrong, monkeypatch):
    path, file = files("llama")
    model = anytune.load(path, threads=1)
    right = anytune.Adapter.load(file, gguf=model.gguf)
    ours = {
        "rows": lambda: {
            n: (a, b.reshape(2, -1, 4).swapaxes(0, 1).reshape(b.shape).copy()) if "attn_q" in n else (a, b)
            for n, (a, b) in right.tensors.items()
        },
        "scale": lambda: {n: (a, 2 * b) for n, (a, b) in right.tensors.items()},
        "nothing": lambda: {n: (a, 0 * b) for n, (a, b) in right.tensors.items()},
    }[wrong]()
    monkeypatch.setattr(anytune.Adapter, "load", lambda *_, **__: dataclasses.replace(right, tensors=ours))
    facts = verify(model, file, positions=4, threads=1)
    assert not facts["ok"] and facts["base"]["ok"] and not facts["change"]["ok"], facts


def test_an_f32_copy_takes_llamacpps_rounding_away(files):
    path, adapter = files("llama", "Q4_0")
    model = anytune.load(path, threads=1)
    rough = verify(model, positions=4, threads=1)
    fine = verify(model, adapter, positions=4, exact=True, threads=1)
    assert fine["ok"] and fine["base"]["kl_max"] < 1e-5 < rough["base"]["kl_max"]
    assert fine["base"]["limit"] == 1e-5 and rough["base"]["limit"] == 1e-2


def test_rounding_beyond_the_limit_is_settled_in_float32(files, monkeypatch):
    """A right adapter passes then, a wrong one fails still, and without memory for the copy the first answer stays."""
    path, file = files("llama", "Q4_0")
    model = anytune.load(path, threads=1)
    monkeypatch.setattr(module, "ROUNDED_KL", 1e-9)
    for limits, value in ((module.WORST, 10), (module.SURE, 0.5), (module.CHANGE, 0.5)):
        monkeypatch.setitem(limits, 1e-9, value)
    assert not verify(model, file, positions=4, threads=1)["ok"]
    facts = verify_then_exact(model, file, positions=4, threads=1)
    assert facts["ok"] and facts["exact_copy"] and facts["rounding_kl"] > 1e-9 and "in float32" in report(facts)
    with monkeypatch.context() as patch:
        patch.setattr(module, "available_bytes", lambda: 0)
        assert not verify_then_exact(model, file, positions=4, threads=1)["ok"]
    right = anytune.Adapter.load(file, gguf=model.gguf)
    twice = {name: (a, 2 * b) for name, (a, b) in right.tensors.items()}
    monkeypatch.setattr(anytune.Adapter, "load", lambda *_, **__: dataclasses.replace(right, tensors=twice))
    assert not verify_then_exact(model, file, positions=4, threads=1)["ok"]


def test_from_python_the_reference_engine_is_compared(files, monkeypatch):
    """A model that was trained on may round its products to bf16; the limits are float32's."""
    path, adapter = files("llama")
    with anytune.load(path, "numpy", threads=1) as model:
        exact, noise = model.logits, np.random.default_rng(0)
        monkeypatch.setattr(model.engine, "name", "rounding", raising=False)
        monkeypatch.setattr(
            model, "logits", lambda *given: exact(*given) + noise.normal(0, 0.05, model.config.vocabulary)
        )
        assert not verify(model, adapter, positions=4, threads=1)["ok"]
        assert anytune.verify(model, adapter, positions=4, threads=1)["ok"]


def test_what_llamacpp_refuses_is_told_in_one_sentence(files, tmp_path):
    path, _ = files("llama")
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(path.read_bytes()[:2000])
    for model, adapter in ((broken, None), (path, path)):
        with pytest.raises(UserError, match="llama.cpp could not use .*gguf") as error:
            judge.llamacpp_logprobs(model, [[5, 6]], vocab=320, adapter=adapter, threads=1)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="positions"):
        judge.llamacpp_logprobs(path, [[5, 6]], vocab=320, positions=[[2]])


def test_without_xllamacpp_it_says_how_to_install_it(files, monkeypatch):
    path, _ = files("llama")
    monkeypatch.setattr(judge, "available", lambda: False)
    with pytest.raises(UserError, match="pip install xllamacpp"):
        verify(anytune.load(path, threads=1), positions=1)


def test_a_text_too_short_is_named(files):
    path, _ = files("llama")
    with pytest.raises(UserError, match="fewer than two tokens"):
        verify(anytune.load(path, threads=1), text="")


@pytest.mark.parametrize("tokens, places", [(2, [1]), (4, [3]), (5, [3, 4]), (700, [3, 130, 257, 384, 511])])
def test_positions_are_spread_from_the_fourth_token_to_the_last(tokens, places):
    model = SimpleNamespace(tokenize=lambda text: list(range(tokens)), config=SimpleNamespace(context=1024))
    assert _tokens(model, "", 5) == (list(range(min(tokens, 512))), places)


def test_the_command_gives_verdict_and_json(files, cli):
    path, adapter = files("llama")
    outcome = cli("verify", "-m", path, "--lora", adapter, "--positions", "3", "-t", "1", "--json", code=0)
    assert outcome.json["ok"] and outcome.json["base"]["positions"] == 3
    assert "PASS" in cli("verify", "-m", path, "--positions", "2", "-t", "1", code=0).out
