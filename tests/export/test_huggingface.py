"""The folder for transformers and MLX: same logits, same token ids, whole or absent."""

import importlib.util
import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import anytune
from anytune.extras import install
from anytune.cli.main import run as command
from anytune.errors import UserError
from anytune.export.huggingface import save
from anytune.export.tokenizer import tokenizer_json
from anytune.gguf import GGUF
from anytune.text.pretokenizers import PRE
from tests.export import pairs
from tests.support import models, tiny, twin
from tests.support.distributions import kl
from tests.support.require import need
from tests.text import samples

TEXTS = [*samples.FIXED, *samples.texts(60, 3)]


def load(folder):
    transformers, torch = need("transformers"), need("torch")
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.mark.parametrize("name", sorted(tiny.SHAPES))
def test_every_architecture_loads_and_computes_the_same(tmp_path, name):
    base = tiny.write(tmp_path / "m.gguf", name)
    adapter = pairs.adapter(base, size=0.5)
    model = anytune.load(base, device="numpy", threads=1)
    save(model.gguf, adapter, tmp_path / "hf", dtype="f32")
    theirs, ours = twin.logits(load(tmp_path / "hf"), pairs.IDS), model.logits(pairs.IDS, adapter)
    assert kl(ours, model.logits(pairs.IDS)).mean() > 0.05, "the adapter does nothing"
    assert kl(theirs, ours).max() < 1e-8


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_sixteen_bits_in_several_files(tmp_path, dtype):
    safetensors = need("safetensors.numpy" if dtype == "f16" else "safetensors")
    base = tiny.write(tmp_path / "m.gguf", "qwen3", "Q4_0")
    model = anytune.load(base, device="numpy", threads=1)
    facts = save(model.gguf, None, tmp_path / "hf", dtype=dtype, shard=40_000)
    files = sorted(p.name for p in (tmp_path / "hf").glob("*.safetensors"))
    assert facts["shards"] == len(files) > 2
    index = json.loads((tmp_path / "hf" / "model.safetensors.index.json").read_text())
    assert sorted(set(index["weight_map"].values())) == files
    assert (
        index["metadata"]["total_size"] == facts["bytes"] == sum(2 * t.n_elements for t in model.gguf.tensors.values())
    )
    assert safetensors is not None
    assert kl(twin.logits(load(tmp_path / "hf"), pairs.IDS), model.logits(pairs.IDS)).max() < 1e-2


def library(file):
    need("tokenizers")
    from tokenizers import Tokenizer

    return Tokenizer.from_str(json.dumps(tokenizer_json(file)))


def differing(file, texts):
    ours, theirs = anytune.text.Tokenizer(file.metadata), library(file)
    return [text for text in texts if theirs.encode(text).ids != ours.encode(text, special=True)]


@pytest.mark.parametrize("pre", sorted({pre: name for name, pre in PRE.items() if pre.bytes_}.values()))
def test_every_pre_tokenizer_gives_the_same_ids(tmp_path, pre):
    base = tiny.write(tmp_path / "m.gguf", "llama")
    with GGUF.open(base) as file:
        file.metadata["tokenizer.ggml.pre"] = pre
        file.metadata["tokenizer.ggml.add_bos_token"] = True
        assert differing(file, TEXTS) == []


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_gives_the_same_ids(tmp_path, prefix):
    base = tiny.write(tmp_path / "m.gguf", "gemma3")
    with GGUF.open(base) as file:
        file.metadata["tokenizer.ggml.add_space_prefix"] = prefix
        assert differing(file, TEXTS) == []


@pytest.mark.parametrize("model", [models.smollm2, models.gemma3])
def test_real_vocabularies(model):
    with GGUF.open(model()) as file:
        readme = (Path(__file__).parents[2] / "README.md").read_text("utf-8")[:6000]
        ours, theirs = anytune.text.Tokenizer(file.metadata), library(file)
        for text in [*TEXTS, readme]:
            ids = ours.encode(text, special=True)
            assert theirs.encode(text).ids == ids
            assert theirs.decode(ids, skip_special_tokens=True) == ours.decode(ids) or "<" in text


def test_the_template_and_special_tokens_arrive(tmp_path):
    transformers = need("transformers")
    base = tiny.write(tmp_path / "m.gguf", "llama")
    adapter = pairs.adapter(base)
    adapter.chat_template = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
    with GGUF.open(base) as file:
        save(file, adapter, tmp_path / "hf", dtype="f32")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    said = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert said == "<|im_start|>hi<|im_end|>"
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    generation = json.loads((tmp_path / "hf" / "generation_config.json").read_text())
    assert set(generation["eos_token_id"]) == {0, 2}


def test_the_commands(tmp_path, capsys):
    need("transformers")
    base = tiny.write(tmp_path / "m.gguf", "gemma3")
    pairs.adapter(base, size=0.3).save(tmp_path / "a.gguf")
    common = ["-m", str(base), "--lora", str(tmp_path / "a.gguf"), "-t", "1"]
    assert command(["export", "hf", *common, "-o", str(tmp_path / "hf"), "--outtype", "f32", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["checks"][0]["tokens_alike"] and told["checks"][0]["limit"] == 1e-5 and told["ok"]
    assert command(["export", "mlx", *common, "-o", str(tmp_path / "mlx"), "--no-verify"]) == 0
    assert command(["export", "hf", *common, "-o", str(tmp_path / "hf")]) == 2
    assert "already exists" in capsys.readouterr().err


def test_a_peer_that_is_missing_is_told(tmp_path, monkeypatch, capsys):
    base = tiny.write(tmp_path / "m.gguf", "llama")
    real = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None if name == "torch" else real(name, *rest))
    assert command(["export", "hf", "-m", str(base), "-o", str(tmp_path / "hf"), "-t", "1"]) == 0
    assert f"not verified in transformers: torch is not installed: {install('hf')}" in capsys.readouterr().out


def test_a_disk_that_fills_leaves_nothing(tmp_path, monkeypatch):
    import errno

    from anytune.export import huggingface

    base = tiny.write(tmp_path / "m.gguf", "llama")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(huggingface, "_header", full)
    with GGUF.open(base) as file, pytest.raises(UserError, match="No space"):
        save(file, None, tmp_path / "hf")
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]


def test_what_float16_cannot_hold(tmp_path):
    from anytune.gguf import write_gguf

    base = tiny.write(tmp_path / "m.gguf", "llama")
    with GGUF.open(base) as file:
        write_gguf(
            tmp_path / "big.gguf",
            file.metadata,
            [
                (
                    n,
                    t.shape,
                    "F32",
                    np.full(t.shape, 7e4, np.float32) if n == "blk.0.ffn_up.weight" else file.float32(n),
                )
                for n, t in file.tensors.items()
            ],
            kinds=file.kinds,
        )
    with GGUF.open(tmp_path / "big.gguf") as file:
        with pytest.raises(UserError, match="--type bf16"):
            save(file, None, tmp_path / "hf", dtype="f16")
        save(file, None, tmp_path / "hf", dtype="bf16")


def test_rounding_to_16_bits_is_not_held_against_a_folder_but_other_weights_are(tmp_path, monkeypatch):
    """A token between two nearly equal experts goes to the other one where weights are rounded."""
    from anytune.export import checks

    torch_files = need("safetensors.torch")
    base, folder = tmp_path / "m.gguf", tmp_path / "folder"
    tiny.write(base, "qwen3moe")
    made = pairs.adapter(base, size=0.5, served=True)
    model = anytune.load(base, device="numpy", threads=1)
    save(model.gguf, made, folder, dtype="bf16")
    facts = checks.in_folder(folder, model, made, "bf16")
    assert facts["ok"] and facts["rounding_kl"] > checks.ROUNDED_KL > 1e3 * facts["kl_mean"]
    assert checks.line(facts).startswith("PASS: transformers in float32") and "rounded to bf16" in checks.line(facts)
    with monkeypatch.context() as full:
        full.setattr("anytune.files.shutil.disk_usage", lambda _: SimpleNamespace(free=0))
        facts = checks.in_folder(folder, model, made, "bf16")
    assert facts["ok"] is None and "float32 copy" in facts["why"] and "TMPDIR" in facts["why"]
    path = next(folder.glob("*.safetensors"))
    weights = torch_files.load_file(path)
    next(w for name, w in weights.items() if name.endswith("up_proj.weight"))[0, 0] *= 1.01
    torch_files.save_file(weights, path, metadata={"format": "pt"})
    assert not checks.in_folder(folder, model, made, "bf16")["ok"]
