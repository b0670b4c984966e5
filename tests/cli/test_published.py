"""The published training commands of llama-finetune-lora run as they stand, after changing the program's name."""

import json
import shlex

import pytest

from anytune.gguf import GGUF
from tests.support import tiny

COMMANDS = {
    "quick test": "-m models/qwen3-0.6b-q8_0.gguf -f train.jsonl --assistant-loss-only -c 128 -b 128 -ub 128 -ngl 99 "
                  "-fa off --num-epochs 2",
    "style": "-m models/qwen3-1.7b-q8_0.gguf -f train.jsonl -c 512 -b 128 -ub 128 -ngl 999 --lora-rank 16 "
             "--lora-alpha 32 --num-epochs 3",
    "biomedical": "-m models/qwen3-1.7b-q8_0.gguf -f train.jsonl --assistant-loss-only -c 128 -b 128 -ub 128 "
                  "-ngl 999 -fa off --learning-rate 1e-5 --lr-min 1e-8 --lr-scheduler cosine --warmup-ratio 0.1 "
                  '--num-epochs 8 --lora-modules "attn_q,attn_k,attn_v,attn_o,ffn_gate,ffn_up,ffn_down"',
    "basic": "-m model.gguf -f dataset.txt -ngl 999 -c 512 -b 512 -ub 512 -fa off",
    "basic, no -fa": "-m model.gguf -f dataset.txt -ngl 999 -c 512 -b 512 -ub 512",
    "parameters": "-m model.gguf -f dataset.txt -ngl 999 -c 512 -b 512 -ub 512 --lora-rank 16 --lora-alpha 32 "
                  '--lora-modules "attn_q,attn_k,attn_v,attn_o" -fa off',
    "instructions": "-m model.gguf -f conversations.jsonl --assistant-loss-only --chat-template custom.jinja -ngl 999 "
                    "-c 512 -b 128 -ub 128 -fa off",
    "assistant only": "-m model.gguf -f dataset.jsonl -ngl 999 -c 512 -b 512 -ub 512 "
                      '--lora-modules "attn_q,attn_k,attn_v,attn_o" --assistant-loss-only -fa off',
    "all modules": "-m model.gguf -f dataset.jsonl --output-adapter adapter.gguf --assistant-loss-only -c 128 -b 128 "
                   '-ub 128 -ngl 999 -fa off --num-epochs 1 --lora-modules "all"',
    "long": "-m model.tq2_0.gguf -f biomed.jsonl --output-adapter adapter.gguf --assistant-loss-only -c 128 -b 128 "
            '-ub 128 -ngl 999 -fa off --checkpoint-save-steps 50 --checkpoint-save-dir "./checkpoints" '
            "--learning-rate 1e-5 --lr-min 1e-8 --lr-scheduler cosine --warmup-ratio 0.1 "
            '--num-epochs 20 --lora-modules "all"',
    "email": "-m models/qwen3-1.7b-q8_0.gguf -f email_dataset.jsonl -c 512 -b 128 -ub 128 -ngl 999 --lora-rank 16 "
             "--lora-alpha 32 --num-epochs 3 --output-adapter email_adapter.gguf",
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The files that the commands name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    for name in ("model", "base_model", "model.tq2_0", "models/qwen3-0.6b-q8_0", "models/qwen3-1.7b-q8_0"):
        tiny.write(tmp_path / f"{name}.gguf", "qwen3", type="Q8_0")
    chats = [{"messages": [{"role": "system", "content": "Short."}, {"role": "user", "content": f"Say {n}"},
                           {"role": "assistant", "content": f"{n}, as you like."}]} for n in range(3)]
    for name in ("train", "dataset", "conversations", "biomed"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chats))
    mails = [{"id": n, "text": f"re: {n} 🌙\n\nhey jordan,\n\n{n} of them"} for n in range(3)]
    (tmp_path / "email_dataset.jsonl").write_text("".join(json.dumps(row) + "\n" for row in mails))
    (tmp_path / "dataset.txt").write_text("The cat sat on a warm stone.\n" * 40)
    (tmp_path / "custom.jinja").write_text(tiny.CHATML)
    return tmp_path


@pytest.mark.parametrize("name", COMMANDS)
def test_a_published_command_trains(here, cli, name):
    cli("train", *shlex.split(COMMANDS[name]), "--threads", "1", code=0)
    made = here / ("email_adapter.gguf" if name == "email" else "adapter.gguf")
    run, = (here / "runs").iterdir()
    with GGUF.open(made if "--output-adapter" in COMMANDS[name] else run / "adapter.gguf") as adapter:
        assert adapter.metadata["general.type"] == "adapter"


def test_an_adapter_is_improved(here, cli):
    cli("train", *shlex.split("-m base_model.gguf -f dataset.txt -ngl 999 -c 512 -b 512 -ub 512 --threads 1 "
                              "--output-adapter existing_adapter.gguf"), code=0)
    cli("train", *shlex.split("-m base_model.gguf -f dataset.txt --lora existing_adapter.gguf --output-adapter "
                              "improved_adapter.gguf -ngl 999 -c 512 -b 512 -ub 512 --threads 1"), code=0)
    assert (here / "improved_adapter.gguf").read_bytes() != (here / "existing_adapter.gguf").read_bytes()


def test_checkpoints_are_saved_and_continued(here, cli):
    """The published numbers of steps are larger than what a tiny file has."""
    common = "-m model.gguf -f dataset.txt -ngl 999 -c 512 -b 512 -ub 512 --threads 1"
    cli("train", *shlex.split(f'{common} --checkpoint-save-steps 1 --checkpoint-save-dir "./lora_checkpoints"'), code=0)
    last = sorted((here / "lora_checkpoints").iterdir())[-1]
    again = cli("train", *shlex.split(f'{common} --resume-from "./lora_checkpoints/{last.name}/" '
                                      "--output-adapter improved_adapter.gguf -fa off"), code=0)
    assert (here / "improved_adapter.gguf").is_file() and "Finished" in again.err
    cli("train", *shlex.split(f'{common} --checkpoint-save-dir "./lora_checkpoints" --auto-resume'), code=0)
