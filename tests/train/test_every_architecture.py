"""`anytune train` of each architecture: resumed from a checkpoint, without repeating its settings, it ends in the
bytes of the run that was never stopped."""

import json

import pytest

from anytune.cli.main import run
from anytune.gguf import GGUF
from tests.support import tiny
from tests.support.require import need
from tests.train.kill_harness import deterministic_rows

HOW = "-c 64 -ub 64 -b 64 --max-steps 3 --lora-rank 2 --lora-dropout 0.1 --learning-rate 1e-3 -t 1 -q".split()
SAVED = ["--checkpoint-save-steps", "2"]
# what has kernels of its own on torch: recurrences, experts, sinks and windows; for the rest one stands for all
ON_TORCH = ("llama", "qwen35", "lfm2", "gemma4", *(name for name in tiny.MIXTURES if name in tiny.EACH))


@pytest.fixture(scope="module")
def chats(tmp_path_factory):
    path = tmp_path_factory.mktemp("chats") / "chats.jsonl"
    words = "the cat sat on a warm stone in the sun".split()
    rows = [{"messages": [{"role": "user", "content": " ".join(words[i:])}, {"role": "assistant", "content": "it was"}]}
            for i in range(6)]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    "name, device",
    [
        *((name, "numpy") for name in tiny.EACH),
        *((name, "cpu-torch") for name in ON_TORCH),
        ("llama", "cpu-torch --dtype fp8"),
    ],
)
def test_resumed_from_the_middle(tmp_path, monkeypatch, chats, name, device):
    if device.startswith("cpu-torch"):
        need("torch").set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    tiny.write(tmp_path / "m.gguf", name)
    common = ["train", "-m", "m.gguf", "-f", str(chats), "--device", *device.split()]
    modules = ["--lora-modules", "all,experts"] if name in tiny.MIXTURES else []
    assert run([*common, *HOW, *modules, *SAVED, "--run-dir", "one", "-o", "one.gguf"]) == 0
    checkpoint = "one/checkpoints/checkpoint_step_00000002"
    assert run([*common, "-t", "1", "-q", "--resume-from", checkpoint, "--run-dir", "two", "-o", "two.gguf"]) == 0
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "two.gguf").read_bytes()
    assert (
        deterministic_rows(tmp_path / "two" / "metrics.jsonl")
        == deterministic_rows(tmp_path / "one" / "metrics.jsonl")[-1:]
    )
    if modules:
        with GGUF.open(tmp_path / "one.gguf") as adapter:
            assert any("_exps" in tensor for tensor in adapter.tensors)


def test_the_first_lines_say_that_experts_are_frozen(tmp_path, monkeypatch, chats, capsys):
    monkeypatch.chdir(tmp_path)
    tiny.write(tmp_path / "m.gguf", "qwen3moe")
    common = "train -m m.gguf --device numpy -c 64 -ub 64 -b 64 --max-steps 1 -t 1 -f".split() + [str(chats)]
    assert run([*common, "--lora-rank", "2", "-o", "a.gguf"]) == 0
    said = capsys.readouterr().err
    with GGUF.open(tmp_path / "m.gguf") as base:
        count = sum(8 * 2 * sum(t.shape[1:]) for name, t in base.tensors.items() if "_exps" in name)
    assert f"Experts: frozen; --lora-modules all,experts trains them too ({count:,} more parameters" in said
    for more in (["--lora-modules", "all,experts"], ["--lora", "a.gguf"]):
        assert run([*common, *more, "-o", "b.gguf", "--force"]) == 0
        assert "Experts:" not in capsys.readouterr().err
