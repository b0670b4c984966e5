"""A model whose weights are not numbers: every command says so in a sentence, and writes nothing that looks right."""

import json

import numpy as np
import pytest

import anytune
from anytune.cli.main import run as command
from anytune.errors import UserError
from anytune.gguf import GGUF, write_gguf
from tests.support import tiny

TEXT = "the rest of the west wind was in the air; an old storm came on. " * 12


def copy(source, target, changed):
    """The file with changed(name, values) of each F32 tensor; None leaves it out."""
    with GGUF.open(source) as gguf:
        values = {
            t.name: np.array(gguf.blocks(t.name)).view(np.float32).reshape(t.shape) for t in gguf.tensors.values()
        }
        found = {name: changed(name, value) for name, value in values.items()}
        tensors = [(name, value.shape, "F32", value) for name, value in found.items() if value is not None]
        write_gguf(target, dict(gguf.metadata), tensors, dict(gguf.kinds))
    return target


@pytest.fixture(
    scope="module", params=["blk.1.ffn_gate_inp.weight", "blk.1.ffn_down_exps.weight", "output_norm.weight"]
)
def damaged(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("damaged")
    path = tiny.write(folder / "good.gguf", "qwen3moe")
    return copy(path, folder / "bad.gguf", lambda name, x: x * np.float32(np.nan) if name == request.param else x)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "words",
    [
        "perplexity -m {m} -f text.txt -c 32 --kl-divergence-base out",
        "embed -m {m} -p one -p two --json",
        "embed -m {m} -p one -o out.npz",
        "generate -m {m} -p the -n 2",
        "train -m {m} -f chats.jsonl -c 64 --max-steps 1 -o out.gguf",
    ],
)
def test_results_that_are_not_numbers_are_refused(damaged, tmp_path, monkeypatch, capsys, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT)
    chat = {"messages": [{"role": "user", "content": "the air"}, {"role": "assistant", "content": "the wind"}]}
    (tmp_path / "chats.jsonl").write_text(json.dumps(chat))
    assert command([*words.format(m=damaged).split(), "--device", "numpy", "-t", "1"]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "damaged" in said and "--learning-rate" not in said
    assert not list(tmp_path.glob("out*"))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["gpt-oss", "qwen35moe", "lfm2moe", "deepseek2", "gemma4-experts"])
def test_the_one_sentence_is_all_that_is_said(tmp_path, name):
    path = tiny.write(tmp_path / "good.gguf", name)
    bad = copy(path, tmp_path / "bad.gguf", lambda name, x: x * np.float32(np.nan) if "token_embd" in name else x)
    with pytest.raises(UserError, match="not numbers"):
        anytune.load(bad, device="numpy", threads=1).generate("the", max_tokens=1)


def test_importance_of_damaged_weights(tmp_path):
    from anytune.quantization.collect import collect

    path = tiny.write(tmp_path / "good.gguf", "qwen3moe")
    bad = copy(path, tmp_path / "bad.gguf", lambda name, x: x * np.float32(np.nan) if "gate_inp" in name else x)
    with pytest.raises(UserError, match="not numbers"):
        collect(anytune.load(bad, device="numpy", threads=1), TEXT, context=32)


def test_a_tensor_that_llama_cpp_needs_is_needed_here(tmp_path):
    path = tiny.write(tmp_path / "good.gguf", "gemma4")
    bad = copy(path, tmp_path / "bad.gguf", lambda name, x: None if name.startswith("rope_freqs") else x)
    with pytest.raises(UserError, match="rope_freqs"):
        anytune.load(bad, device="numpy", threads=1)


def test_info_names_the_modules_that_train_takes(tmp_path):
    from anytune.info import describe
    from anytune.model import Lora

    path = tiny.write(tmp_path / "m.gguf", "deepseek2")
    names = [module["name"] for module in describe(path)["trainable"]["modules"]]
    assert names and "attn_q_a" not in names
    with GGUF.open(path) as gguf:
        assert Lora(modules=",".join(names)).tensors(gguf, 3)
