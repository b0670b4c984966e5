"""data preview and train from the command line, on a tiny model."""

import gzip
import json

import pytest

import anytune
from tests.support.require import need

QUICK = ["-t", "1", "--quiet"]


def test_preview_shows_the_tokens_as_they_are_and_the_loss_on_what_is_answered(cli, model, chats):
    facts = cli("data", "preview", "-m", model, "-f", chats, "--assistant-loss-only", "-n", "2", "--json", code=0).json
    assert facts["counts"]["examples"] == 6 and len(facts["examples"]) == 2
    for number, example in enumerate(facts["examples"]):
        text = "".join(t["text"] for t in example["tokens"])
        assert text.strip() == (
            f"<|im_start|>user\nSay {number}<|im_end|>\n<|im_start|>assistant\n{number}, as you like.<|im_end|>"
        )
        assert "".join(t["text"] for t in example["tokens"] if t["loss"]) == f"{number}, as you like.<|im_end|>"
        assert example["where"].endswith(f"chats.jsonl, line {number + 1}")
    everything = cli(
        "data", "preview", "-m", model, "-f", chats, "--assistant-loss-only", "-n", "99", "--json", code=0
    ).json
    assert sum(len(e["tokens"]) for e in everything["examples"]) == facts["counts"]["tokens"]
    assert sum(t["loss"] for e in everything["examples"] for t in e["tokens"]) == facts["counts"]["loss_tokens"]
    assert max(len(e["tokens"]) for e in everything["examples"]) == facts["counts"]["longest"]


def test_preview_for_people_marks_the_loss_in_brackets_or_colours(cli, model, chats):
    plain = cli("data", "preview", "-m", model, "-f", chats, "--assistant-loss-only", "-n", "1", code=0).out
    legend, shown = plain.split("\n", 1)
    assert "[…]: learned" in legend
    marked = shown.split("[", 1)[1].split("]", 1)[0]
    assert marked.replace("|", "") == "0, as you like.<im_end>"
    assert "6 examples" in plain and "\x1b" not in plain
    coloured = cli(
        "data", "preview", "-m", model, "-f", chats, "--assistant-loss-only", "-n", "1", "--color", code=0
    ).out
    assert "\x1b[30;42m" in coloured


def test_preview_escapes_control_characters_of_the_data(cli, model, tmp_path):
    path = tmp_path / "evil.jsonl"
    path.write_text(json.dumps({"text": "red \x1b[31m bell \x07 end"}) + "\n")
    for color in ("--color", "--no-color"):
        out = cli("data", "preview", "-m", model, "-f", path, color, code=0).out
        assert "\x07" not in out and "\x1b[31m bell" not in out


def test_a_run_leaves_an_adapter_that_is_what_it_says(cli, model, chats, tmp_path):
    run, adapter = tmp_path / "run", tmp_path / "adapter.gguf"
    outcome = cli(
        "train",
        "-m",
        model,
        "-f",
        chats,
        "--assistant-loss-only",
        "-c",
        "64",
        "-ub",
        "64",
        "-b",
        "128",
        "--max-steps",
        "3",
        "--lora-rank",
        "4",
        "--lora-alpha",
        "12",
        "--lora-modules",
        "attn_q,ffn_down",
        "--learning-rate",
        "1e-2",
        "--run-dir",
        run,
        "-o",
        adapter,
        *QUICK,
        "--json",
        code=0,
    )
    facts = outcome.json
    assert facts["step"] == 3 and facts["stopped"] == "finished" and facts["adapter"] == str(adapter)
    assert facts["last"]["loss"] > 0 and (run / "metrics.jsonl").exists()
    loaded = anytune.Adapter.load(adapter)
    assert (loaded.rank, loaded.alpha, len(loaded.tensors)) == (4, 12.0, 4)
    assert cli("info", adapter, "--json", code=0).json["adapter"]["base_sha256"] == anytune.load(model).gguf.sha256()
    base = cli("generate", "-m", model, "-p", "Say 3", "-n", "8", "--temp", "0", code=0).out
    tuned = cli("generate", "-m", model, "--lora", adapter, "-p", "Say 3", "-n", "8", "--temp", "0", code=0).out
    assert base != tuned
    need("xllamacpp")
    verdict = cli("verify", "-m", model, "--lora", adapter, "--positions", "4", "--json", code=0).json
    assert verdict["change"]["relative_error"] < 0.02


def test_flags_of_llama_finetune_lora_run_as_they_stand(cli, model, chats, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = cli(
        "train",
        "-m",
        model,
        "-f",
        chats,
        "--assistant-loss-only",
        "-c",
        "128",
        "-b",
        "128",
        "-ub",
        "128",
        "-ngl",
        "999",
        "-fa",
        "off",
        "--learning-rate",
        "1e-5",
        "--lr-min",
        "1e-8",
        "--lr-scheduler",
        "cosine",
        "--warmup-ratio",
        "0.1",
        "--num-epochs",
        "2",
        "--checkpoint-save-steps",
        "50",
        "--checkpoint-save-dir",
        "./lora_checkpoints",
        "--lora-rank",
        "8",
        "--lora-alpha",
        "16",
        "--lora-modules",
        "attn_q,attn_k,attn_v,attn_o,ffn_gate,ffn_up,ffn_down",
        "--output-adapter",
        "adapter.gguf",
        "-t",
        "1",
        code=0,
    )
    assert (tmp_path / "adapter.gguf").exists() and any((tmp_path / "lora_checkpoints").iterdir())
    assert outcome.err.count("-ngl 999 has no effect") == 1
    again = cli(
        "train",
        "-m",
        model,
        "-f",
        chats,
        "--assistant-loss-only",
        "-c",
        "128",
        "-b",
        "128",
        "-ub",
        "128",
        "--num-epochs",
        "2",
        "--auto-resume",
        *QUICK,
        code=0,
    )
    assert again.code == 0


@pytest.mark.parametrize("flag", [["--assistant-loss-only"], []])
def test_text_without_turns_is_trained_whole_or_refused_with_what_to_do(cli, model, tmp_path, flag):
    path = tmp_path / "qa.jsonl.gz"
    row = {"text": "Is it so? They say Yes.", "question": "is it so?", "label": "Yes"}
    with gzip.open(path, "wt") as file:
        file.write(json.dumps(row) + "\n")
    outcome = cli("data", "preview", "-m", model, "-f", path, *flag, "--json")
    if not flag:
        assert outcome.code == 0 and outcome.json["counts"]["loss_tokens"] == outcome.json["counts"]["tokens"] - 1
        return
    assert outcome.code == 2 and outcome.err.count("\n") == 1
    assert "--assistant-loss-only" in outcome.err and "--prompt-key" in outcome.err
    named = cli(
        "data",
        "preview",
        "-m",
        model,
        "-f",
        path,
        *flag,
        "--prompt-key",
        "question",
        "--completion-key",
        "label",
        "--json",
        code=0,
    ).json
    learned = "".join(t["text"] for t in named["examples"][0]["tokens"] if t["loss"])
    assert learned.startswith("Yes") and "so" not in learned


def test_an_adapter_trained_on_text_continues_text_and_one_trained_on_chats_answers(cli, model, chats, tmp_path):
    from anytune.generation.prompts import prompt_ids

    text = tmp_path / "text.txt"
    text.write_text("the rain in the sea and the rest of it " * 20)
    loaded = anytune.load(model, threads=1)
    for data, chat in ((text, False), (chats, True)):
        cli(
            "train",
            "-m",
            model,
            "-f",
            data,
            "-c",
            "64",
            "--max-steps",
            "1",
            "--lora-rank",
            "2",
            "--run-dir",
            tmp_path / f"run-{chat}",
            "-o",
            tmp_path / f"{chat}.gguf",
            *QUICK,
            code=0,
        )
        adapter = anytune.Adapter.load(tmp_path / f"{chat}.gguf")
        assert bool(adapter.chat_template) == chat
        assert (prompt_ids(loaded, "the rain", adapter=adapter) == loaded.tokenize("the rain")) != chat
        said = cli(
            "generate", "-m", model, "--lora", tmp_path / f"{chat}.gguf", "-p", "the rain", "-n", "2", code=0
        ).err
        assert ("plain text" in said) != chat
