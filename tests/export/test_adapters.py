"""Adapters from one form to the other and back, and several as one."""

import json

import numpy as np
import pytest

import anytune
from anytune.adapter.adapter import Adapter
from anytune.cli.main import run as command
from anytune.adapter.combine import combine
from anytune.export.adapters import load
from anytune.errors import UserError
from tests.export import pairs
from tests.support import tiny
from tests.support.require import need


@pytest.mark.parametrize(("name", "rslora"), [("llama", False), ("llama", True), ("qwen2", False), ("gemma3", False)])
def test_peft_to_gguf_to_peft_is_the_identity(tmp_path, name, rslora):
    base = tiny.write(tmp_path / "m.gguf", name)
    with anytune.gguf.GGUF.open(base) as gguf:
        pairs.adapter(base, rslora=rslora).save(tmp_path / "first", gguf)
    common = ["-m", str(base), "--no-verify"]
    assert command(["export", "gguf", *common, "--lora", str(tmp_path / "first"), "-o", str(tmp_path / "a.gguf")]) == 0
    assert command(["export", "peft", *common, "--lora", str(tmp_path / "a.gguf"), "-o", str(tmp_path / "second")]) == 0
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        first, second = ((tmp_path / folder / file).read_bytes() for folder in ("first", "second"))
        assert first == second


def test_the_commands_verify_in_both_programs(tmp_path, capsys):
    need("xllamacpp"), need("peft")
    base = tiny.write(tmp_path / "m.gguf", "llama")
    pairs.adapter(base, size=0.5).save(tmp_path / "a.gguf")
    common = ["-m", str(base), "--lora", str(tmp_path / "a.gguf"), "--json", "-t", "1"]
    assert command(["export", "peft", *common, "-o", str(tmp_path / "peft")]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [c["peer"] for c in told["checks"]] == ["transformers + peft"] and told["ok"]
    assert told["checks"][0]["kl_max"] < 1e-8
    both = ["--lora-scaled", f"{tmp_path}/peft:-0.5", "-o", f"{tmp_path}/half.gguf"]
    assert command(["export", "gguf", *common, *both]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["rank"] == 8 and told["checks"][0]["peer"] == "llama.cpp" and told["ok"]


def test_a_sum_of_adapters_changes_weights_by_the_sum(tmp_path):
    base = tiny.write(tmp_path / "m.gguf", "llama")
    one = pairs.adapter(base, rank=3, seed=1, parts=("attn_",))
    two = pairs.adapter(base, rank=5, seed=2, rslora=True, parts=("attn_q", "ffn_up"))
    both = combine([(one, 1.0), (two, -0.25)])
    assert both.rank == 8 and both.scale == 1
    assert set(both.tensors) == set(one.tensors) | set(two.tensors)
    for name, (a, b) in both.tensors.items():
        wanted = sum(
            weight * x.scale * x.tensors[name][1] @ x.tensors[name][0]
            for x, weight in ((one, 1.0), (two, -0.25))
            if name in x.tensors
        )
        np.testing.assert_allclose(b @ a, wanted, rtol=1e-4, atol=1e-6)


def test_one_alone_is_itself(tmp_path):
    base = tiny.write(tmp_path / "m.gguf", "llama")
    made = pairs.adapter(base)
    assert combine([(made, 1.0)]) is made
    made.save(tmp_path / "a.gguf")
    with anytune.gguf.GGUF.open(base) as gguf:
        half = load([(tmp_path / "a.gguf", 0.5)], gguf)
    name = "blk.0.attn_q.weight"
    np.testing.assert_allclose(
        half.tensors[name][1] @ half.tensors[name][0],
        0.5 * made.scale * made.tensors[name][1] @ made.tensors[name][0],
        rtol=1e-5,
        atol=1e-7,
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["export", "gguf", "-m", "m.gguf", "-o", "o.gguf"], ["--lora"]),
        (["export", "gguf", "-m", "m.gguf", "--lora", "gone", "-o", "o.gguf"], ["no adapter gone"]),
        (["export", "gguf", "-m", "m.gguf", "--lora", "other.gguf", "-o", "o.gguf"], ["qwen3", "trained on"]),
        (["export", "gguf", "-m", "m.gguf", "--lora", "a.gguf", "-o", "folder"], [".gguf"]),
        (["export", "gguf", "-m", "m.gguf", "--lora", "a.gguf", "-o", "m.gguf"], ["model itself"]),
        (["export", "gguf", "-m", "m.gguf", "--lora-scaled", "a.gguf", "-o", "o.gguf"], ["ADAPTER:SCALE"]),
        (["export", "gguf", "-m", "m.gguf", "--lora-scaled", "a.gguf:nan", "-o", "o.gguf"], ["weight nan"]),
        (["export", "peft", "-m", "m.gguf", "--lora", "a.gguf", "-o", "full"], ["full already exists", "--force"]),
        (["export", "peft", "-m", "m.gguf", "--lora", "a.gguf", "-o", "a.gguf/where"], ["a.gguf is a file"]),
    ],
)
def test_mistakes_are_told_in_a_sentence(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    base = tiny.write(tmp_path / "m.gguf", "llama")
    pairs.adapter(base).save("a.gguf")
    pairs.adapter(tiny.write(tmp_path / "q.gguf", "qwen3")).save("other.gguf")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("kept")
    before = sorted(p.name for p in tmp_path.rglob("*"))
    assert command(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("anytune: ") and said.count("\n") == 1
    assert all(word in said for word in words), said
    assert sorted(p.name for p in tmp_path.rglob("*")) == before


def test_an_adapter_of_another_shape_is_refused(tmp_path):
    small, large = tiny.write(tmp_path / "m.gguf", "llama"), tiny.write(tmp_path / "k.gguf", "llama", "Q4_K")
    pairs.adapter(large).save(tmp_path / "a.gguf")
    with anytune.gguf.GGUF.open(small) as gguf, pytest.raises(UserError, match="shape"):
        load([(tmp_path / "a.gguf", 1.0)], gguf)
    assert Adapter.load(tmp_path / "a.gguf").rank == 4
