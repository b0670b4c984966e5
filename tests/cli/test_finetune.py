"""finetune and train --full from the command line, on a tiny model."""

import numpy as np
import pytest

import anytune
from anytune.gguf import GGUF
from tests.support.require import need

QUICK = ["--assistant-loss-only", "-c", "64", "-ub", "64", "-b", "128", "-t", "1", "--quiet", "--device", "numpy"]


def test_a_run_leaves_a_model_that_is_what_it_says(cli, model, chats, tmp_path):
    run, tuned = tmp_path / "run", tmp_path / "tuned.gguf"
    facts = cli(
        "finetune",
        "-m",
        model,
        "-f",
        chats,
        "--max-steps",
        "3",
        "--learning-rate",
        "1e-2",
        "--run-dir",
        run,
        "-o",
        tuned,
        "--output-type",
        "Q8_0",
        "--val-split",
        "0.3",
        *QUICK,
        "--json",
        code=0,
    ).json
    assert facts["step"] == 3 and facts["stopped"] == "finished" and facts["model"] == str(tuned)
    assert tuned.read_bytes() == (run / "model.gguf").read_bytes() and not (run / "adapter.gguf").exists()
    with GGUF.open(model) as base, GGUF.open(tuned) as made:
        assert {made.tensors[n].type.name for n in made.tensors} == {"Q8_0", "F32"}
        for key in ("tokenizer.ggml.tokens", "tokenizer.chat_template", "llama.rope.freq_base"):
            assert np.array_equal(base.metadata[key], made.metadata[key])
    need("xllamacpp")
    assert cli("verify", "-m", tuned, "--json", code=0).json["ok"]
    shown = [cli("generate", "-m", m, "-p", "Say 3", "-n", "8", "--temp", "0", code=0).out for m in (model, tuned)]
    assert shown[0] != shown[1]


def test_train_full_is_the_same(cli, model, chats, tmp_path):
    made = []
    for number, command in enumerate((["finetune"], ["train", "--full"])):
        cli(
            *command,
            "-m",
            model,
            "-f",
            chats,
            "--max-steps",
            "2",
            "--run-dir",
            tmp_path / str(number),
            "--output-type",
            "keep",
            "--optimizer",
            "adafactor",
            *QUICK,
            code=0,
        )
        made.append((tmp_path / str(number) / "model.gguf").read_bytes())
    assert made[0] == made[1]


@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit", "adafactor"])
def test_cut_and_resumed_ends_in_the_same_bytes(model, chats, tmp_path, optimizer):
    options = dict(
        context=64,
        ubatch=64,
        batch=128,
        epochs=3,
        lr=1e-3,
        quiet=True,
        device="numpy",
        threads=1,
        full=anytune.Full(optimizer=optimizer),
        output_type="F32",
        val_split=0.3,
    )
    calm = anytune.finetune(model, chats, run_dir=str(tmp_path / "calm"), **options)
    with pytest.raises(ZeroDivisionError):
        anytune.finetune(
            model,
            chats,
            run_dir=str(tmp_path / "run"),
            checkpoint_save_steps=1,
            progress=lambda row: 1 // (2 - row["step"]),
            **options,
        )
    run = anytune.finetune(model, chats, run_dir=str(tmp_path / "run"), resume_from="auto", **options)
    assert run.step == calm.step > 2 and run.path.read_bytes() == calm.path.read_bytes()


@pytest.mark.parametrize(
    "options, words",
    [
        (["--lora-rank", "4"], "--lora-rank applies to adapters"),
        (["-o", "folder"], "ends in .gguf"),
        (["--output-type", "Q9_X"], "Q9_X"),
        (["--train-modules", "attn_x"], "--train-modules takes"),
        (["--train-layers", "0"], "--train-layers"),
        (["--optimizer", "sgd"], "--optimizer"),
        (["--shard"], "--shard"),
        (["--memory", "1MiB"], "--optimizer adafactor"),
    ],
)
def test_mistakes_are_sentences(cli, model, chats, tmp_path, options, words, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = cli("train", "--full", "-m", model, "-f", chats, "--run-dir", "run", *QUICK, *options, code=2)
    assert words in outcome.err and "Traceback" not in outcome.err and not (tmp_path / "folder").exists()


def test_options_of_a_model_need_full(cli, model, chats, tmp_path):
    for option in (["--train-modules", "norm"], ["--type", "F32"], ["--optimizer", "adamw"]):
        outcome = cli("train", "-m", model, "-f", chats, "--run-dir", tmp_path / "run", *QUICK, *option, code=2)
        assert f"{option[0]} applies to --full" in outcome.err
    assert "--lora-rank" not in cli("finetune", "--help", code=0).out
