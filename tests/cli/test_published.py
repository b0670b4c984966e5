"""Every published command of the reference workflow runs as it is, after changing the program's name."""

import json
import shlex

import pytest

from anytune.gguf import GGUF
from tests.support import tiny

ALL = '--lora-modules "attn_q,attn_k,attn_v,attn_o,ffn_gate,ffn_up,ffn_down"'
COSINE = "--learning-rate 1e-5 --lr-min 1e-8 --lr-scheduler cosine --warmup-ratio 0.1"
SAVED = "--checkpoint-save-steps 50 --checkpoint-save-dir"
BIOMED = "-f biomedical_qa/train.jsonl --assistant-loss-only -c 128 -b 128 -ub 128"
EMAIL = "-f evaluation/email_style_transfer/email_dataset.jsonl -c 512 -b 128 -ub 128 -ngl 999 --lora-rank 16"
TRAIN = [  # llama-finetune-lora
    f"-m models/qwen3-0.6b-q8_0.gguf {BIOMED} -ngl 99 -fa off --num-epochs 2",
    f"-m models/qwen3-0.6b-q8_0.gguf {BIOMED} -ngl 99 -fa off --num-epochs 2 --lora-rank 8 --lora-alpha 16",
    f"-m models/qwen3-1.7b-q8_0.gguf {BIOMED} -ngl 999 -fa off --num-epochs 3",
    f"-m models/qwen3-1.7b-q8_0.gguf {BIOMED} -ngl 999 -fa off {COSINE} --num-epochs 8 {ALL}",
    f"-m models/qwen3-1.7b-q8_0.gguf {BIOMED} -ngl 999 -fa off {COSINE} --num-epochs 1 {ALL}",
    "-m models/qwen3-0.6b-q8_0.gguf -f biomedical_qa/train.jsonl --assistant-loss-only -c 128 -b 64 -ub 64 -ngl 99 "
    "-fa off --lora-rank 8 --lora-alpha 16 --num-epochs 3 --checkpoint-save-steps 25",
    "-m models/qwen3-0.6b-q8_0.gguf -f dataset.jsonl --assistant-loss-only -c 128 -b 64 -ub 64 -ngl 99 -fa off "
    '--lora-rank 8 --lora-alpha 16 --lora-modules "attn_q,attn_k,attn_v,attn_o" '
    f'{COSINE} --checkpoint-save-steps 25 --checkpoint-save-dir "./checkpoints" --num-epochs 5',
    "-m model.gguf -f dataset.txt -ngl 999 -c 512 -b 512 -ub 512 -fa off",
    f"-m model.gguf -f dataset.txt -ngl 999 -c 512 -b 512 -ub 512 --lora-rank 16 --lora-alpha 32 {ALL} -fa off",
    "-m model.gguf -f dataset.txt -ngl 999 -c 512 -b 512 -ub 512",
    "-m model.gguf -f conversations.jsonl --assistant-loss-only --chat-template custom.jinja -ngl 999 -c 512 -b 128 "
    "-ub 128 -fa off",
    "-m models/model.gguf -f conversations.jsonl --assistant-loss-only --chat-template custom_template.jinja -ngl 999",
    "-m model.gguf -f conversations.jsonl --assistant-loss-only --chat-template chatml -ngl 999 -c 512 -b 128 -ub 128",
    '-m model.gguf -f dataset.jsonl -ngl 999 -c 512 -b 512 -ub 512 --lora-modules "attn_q,attn_k,attn_v,attn_o" '
    "--assistant-loss-only -fa off",
    "-m model.gguf -f dataset.jsonl --output-adapter adapter.gguf --assistant-loss-only -c 128 -b 128 -ub 128 "
    '-ngl 999 -fa off --num-epochs 1 --lora-modules "all"',
    f"-m models/qwen3-1.7b-q8_0.gguf -f dataset.jsonl --assistant-loss-only -c 128 -b 128 -ub 128 -ngl 99 -fa off "
    f"--lora-rank 16 --lora-alpha 32 {ALL} {COSINE} --num-epochs 8",
    f"-m models/model.gguf -f dataset.jsonl --assistant-loss-only -c 512 -b 128 -ub 128 -ngl 999 -fa off "
    f'--lora-rank 16 --lora-alpha 32 {ALL} {COSINE} {SAVED} "./lora_checkpoints" --output-adapter trained_adapter.gguf '
    "--num-epochs 8",
    f"-m Qwen-Qwen3-1.7B-Q8_0.gguf -f biomed.jsonl --assistant-loss-only -c 128 -b 128 -ub 128 -ngl 99 -fa off {SAVED} "
    f'"./lora_checkpoints" {COSINE} --num-epochs 8 {ALL}',
    "-m model.tq2_0.gguf -f biomed.jsonl --output-adapter adapter.gguf --assistant-loss-only -c 128 -b 128 -ub 128 "
    f'-ngl 999 -fa off {SAVED} "./checkpoints" {COSINE} --num-epochs 20 --lora-modules "all"',
    "-m qwen3-0.6b-q8_0.gguf -f biomedical_qa.jsonl --assistant-loss-only -c 128 -b 64 -ub 64 -ngl 99 -fa off "
    "--num-epochs 2",
    "-m qwen3-1.7b-q8_0.gguf -f biomedical_qa.jsonl --assistant-loss-only -c 128 -b 128 -ub 128 -ngl 999 -fa off "
    f"--num-epochs 8 {ALL}",
    "-m qwen3-1.7b-q8_0.gguf -f biomedical_qa.jsonl --assistant-loss-only -c 128 -b 128 -ub 128 -ngl 999 -fa off "
    "--learning-rate 1e-5 --lr-scheduler cosine --checkpoint-save-steps 50 --num-epochs 8",
    "-m models/qwen3-1.7b-q8_0.gguf -f evaluation/biomedical_qa/biomedical_qa/train.jsonl --assistant-loss-only -c 128 "
    "-b 128 -ub 128 -ngl 999 -fa off --num-epochs 8 --output-adapter biomedical_adapter.gguf",
    f"-m models/qwen3-1.7b-q8_0.gguf {EMAIL} --lora-alpha 32 --num-epochs 3",
    f"-m models/qwen3-1.7b-q8_0.gguf {EMAIL} --lora-alpha 32 --num-epochs 3 --output-adapter email_adapter.gguf",
    f"-m models/qwen3-1.7b-q8_0.gguf {EMAIL} --lora-alpha 32 --num-epochs 3 --learning-rate 1e-4 --output-adapter "
    "email_style_adapter.gguf",
    "-m qwen3-0_6b-q4_0.gguf -f dataset.jsonl -c 64 -b 32 -ub 32 --lora-rank 4 --num-epochs 2",
    "-m models/qwen3-0.6b-q4_0.gguf -f dataset.jsonl -c 64 -b 32 -ub 32 --lora-rank 4 --num-epochs 2",
    "-m models/qwen3-1.7b-q8_0.gguf -f small_dataset.jsonl -c 128 -b 128 -ub 128 -ngl 999 --num-epochs 1",
]
GREEDY = "-c 2048 -s 42 --temp 0 --top-p 1.0 --top-k 0 --flash-attn off -st"
GENERATE = [  # llama-cli
    '-m models/qwen3-1.7b-q8_0.gguf -ngl 999 -p "Hello, world!"',
    '-m models/qwen3-0.6b-q8_0.gguf -ngl 99 -p "What is machine learning?"',
    '-m qwen3-0_6b-q4_0.gguf -p "Hello"',
    '-m model.gguf -ngl 99 -p "test" --verbose',
    f'-m ../Qwen3-0.6B-Q8_0.gguf -ngl 999 {GREEDY} -p "Tell me a joke about cats" --bench 5',
    '-m models/qwen3-1.7b-q8_0.gguf -ngl 999 -c 2048 -s 42 --temp 0 -p "Tell me a joke" --bench 5',
    '-m base_model.gguf --lora trained_adapter.gguf -ngl 999 -p "Your prompt here"',
    '-m models/base_model.gguf --lora lora-adapter.gguf -ngl 999 -p "Does vitamin D prevent fractures?" --temp 0.7',
    "-m base_model.gguf --lora trained_adapter.gguf -ngl 999 -f test_prompts.txt",
]
MODELS = (
    "model",
    "base_model",
    "model.tq2_0",
    "Qwen-Qwen3-1.7B-Q8_0",
    "qwen3-0.6b-q8_0",
    "qwen3-1.7b-q8_0",
    "qwen3-0_6b-q4_0",
    "models/model",
    "models/base_model",
    "models/qwen3-0.6b-q8_0",
    "models/qwen3-1.7b-q8_0",
    "models/qwen3-0.6b-q4_0",
    "../Qwen3-0.6B-Q8_0",
)
CHATS = [
    {
        "messages": [
            {"role": "system", "content": "Short."},
            {"role": "user", "content": f"Say {n}"},
            {"role": "assistant", "content": f"{n}, as you like."},
        ]
    }
    for n in range(3)
]
QUESTIONS = [
    {"text": f"Q: Is it {n}?\nA: {label}. Rationale: so it is.", "label": label, "question": f"Is it {n}?"}
    for n, label in enumerate(("Yes", "No", "Uncertain"))
]
MAILS = [{"id": n, "subject": f"re: {n} 🌙", "body": f"hey jordan,\n\n{n} of them"} for n in range(3)]
DATA = {
    "biomedical_qa/train": QUESTIONS,
    "biomedical_qa": QUESTIONS,
    "biomed": QUESTIONS,
    "dataset": CHATS,
    "evaluation/biomedical_qa/biomedical_qa/train": QUESTIONS,
    "conversations": CHATS,
    "small_dataset": CHATS,
    "evaluation/email_style_transfer/email_dataset": MAILS,
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The files that the commands name, the data in the form in which they were published."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    for name in MODELS:
        (here / name).parent.mkdir(exist_ok=True)
        tiny.write(here / f"{name}.gguf", "qwen3", type="Q4_0" if "q4_0" in name else "Q8_0")
    for name, rows in DATA.items():
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (here / "dataset.txt").write_text("The cat sat on a warm stone.\n" * 40)
    for name in ("custom.jinja", "custom_template.jinja"):
        (here / name).write_text(tiny.CHATML)
    return here


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    from tests.export import pairs

    folder = tmp_path_factory.mktemp("adapter")
    base = tiny.write(folder / "m.gguf", "qwen3", type="Q8_0")
    pairs.adapter(base, size=0.1).save(folder / "a.gguf")
    return folder / "a.gguf"


@pytest.mark.parametrize("command", TRAIN)
def test_a_published_command_trains(here, cli, command):
    words = shlex.split(command)
    outcome = cli("train", *words, "--threads", "1", code=0)
    (run,) = (here / "runs").iterdir()
    made = words[words.index("--output-adapter") + 1] if "--output-adapter" in words else run / "adapter.gguf"
    with GGUF.open(made) as adapter:
        assert adapter.metadata["general.type"] == "adapter"
    if "biomed" in command:
        assert "read as questions and answers" in outcome.err


@pytest.mark.parametrize("command", GENERATE)
def test_a_published_command_answers(here, cli, adapter, command):
    for name in ("trained_adapter.gguf", "lora-adapter.gguf"):
        (here / name).write_bytes(adapter.read_bytes())
    (here / "test_prompts.txt").write_text("Is it so?\nAnd now?\n")
    outcome = cli("generate", *shlex.split(command), "-n", "4", "-t", "1", code=0)
    assert outcome.out.endswith("\n")
    if "--bench" in command:
        assert "TTFT" in outcome.out and outcome.out.count("\n| ") == 8


def test_predictions_are_scored(here, cli, adapter):
    (here / "test_prompts.txt").write_text("Is it so?\nAnd now?\n")
    cli(
        "generate",
        "-m",
        "base_model.gguf",
        "--lora",
        adapter,
        "--prompts",
        "test_prompts.txt",
        "-o",
        "predictions.txt",
        "-n",
        "4",
        "-t",
        "1",
        "--temp",
        "0",
        code=0,
    )
    (here / "ground_truth.txt").write_text("yes\nno\n")
    assert "accuracy" in cli("evaluate", "score", "predictions.txt", "ground_truth.txt", code=0).out


def test_the_other_tools(here, cli, adapter):
    (here / "adapter.gguf").write_bytes(adapter.read_bytes())
    cli(
        "export",
        "merge",
        *shlex.split("-m base_model.gguf --lora adapter.gguf -o merged_model.gguf"),
        "--type",
        "F16",
        "--no-verify",
        code=0,
    )
    cli("quantize", *shlex.split("merged_model.gguf output_model_q8_0.gguf Q8_0"), code=0)
    cli("bench", *shlex.split("-m model.gguf -ngl 999 -fa off -p 8 -n 2 --train 0 -r 1 -t 1"), code=0)
    assert cli("--version", code=0).out.startswith("anytune ")


def test_an_adapter_is_improved(here, cli):
    cli(
        "train",
        *shlex.split(
            "-m base_model.gguf -f dataset.txt -ngl 999 -c 512 -b 512 -ub 512 --threads 1 "
            "--output-adapter existing_adapter.gguf"
        ),
        code=0,
    )
    cli(
        "train",
        *shlex.split(
            "-m base_model.gguf -f dataset.txt --lora existing_adapter.gguf --output-adapter "
            "improved_adapter.gguf -ngl 999 -c 512 -b 512 -ub 512 --threads 1"
        ),
        code=0,
    )
    assert (here / "improved_adapter.gguf").read_bytes() != (here / "existing_adapter.gguf").read_bytes()


def test_checkpoints_are_saved_and_continued(here, cli):
    """The published numbers of steps are larger than what a tiny file has."""
    common = "-m model.gguf -f dataset.txt -ngl 999 -c 512 -b 512 -ub 512 --threads 1"
    cli("train", *shlex.split(f'{common} --checkpoint-save-steps 1 --checkpoint-save-dir "./lora_checkpoints"'), code=0)
    last = sorted((here / "lora_checkpoints").iterdir())[-1]
    again = cli(
        "train",
        *shlex.split(
            f'{common} --resume-from "./lora_checkpoints/{last.name}/" --output-adapter improved_adapter.gguf -fa off'
        ),
        code=0,
    )
    assert (here / "improved_adapter.gguf").is_file() and "Finished" in again.err
    cli("train", *shlex.split(f'{common} --checkpoint-save-dir "./lora_checkpoints" --auto-resume'), code=0)
