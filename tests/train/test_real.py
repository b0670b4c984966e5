"""The whole job on real engines and files: tiny random models here, SmolLM2 where it is cached."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import anytune
from anytune.errors import UserError
from anytune.train import checkpoint as ckpt
from anytune.train.finetune import train
from tests.support import tiny
from tests.train.kill_harness import same_end, survive

WORDS = "the cat sat on a warm stone in the sun and then it went to see the other cat".split()
SMALL = {"context": 96, "ubatch": 96, "batch": 192, "threads": 1, "quiet": True, "lr": 5e-3}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("model") / "tiny.gguf", "llama", type="Q8_0")


@pytest.fixture(scope="module")
def chats(tmp_path_factory):
    rng, path = random.Random(0), tmp_path_factory.mktemp("data") / "chats.jsonl"
    rows = [
        {
            "messages": [
                {"role": "user", "content": " ".join(rng.choices(WORDS, k=4))},
                {"role": "assistant", "content": " ".join(WORDS[: rng.randint(3, 8)])},
            ]
        }
        for _ in range(24)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_finetune_learns_and_leaves_a_run(model, chats, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    loaded = anytune.load(model, threads=1)
    run = anytune.finetune(
        loaded,
        chats,
        lora=anytune.Lora(rank=4),
        epochs=3,
        val_split=0.2,
        assistant_loss_only=True,
        output="out.gguf",
        **SMALL,
    )
    assert run.stopped == "finished" and run.exit_code == 0 and run.output.exists()
    assert run.metrics[-1]["loss"] < 0.8 * run.metrics[0]["loss"]
    assert run.output.read_bytes() == run.path.read_bytes()
    names = {p.name for p in run.run_dir.iterdir()}
    assert {"settings.json", "metrics.jsonl", "train.log", "loss.svg", "adapter.gguf", "checkpoints"} <= names
    adapter = anytune.Adapter.load(run.output, gguf=loaded.gguf)
    assert adapter.rank == 4 and adapter.base_sha256 == loaded.gguf.sha256() and adapter.chat_template
    for name, (a, b) in run.adapter.tensors.items():
        np.testing.assert_array_equal(a, adapter.tensors[name][0])
        assert np.abs(b).max() > 0
    ids = loaded.tokenize("the cat")
    assert np.abs(loaded.logits(ids, adapter=run.adapter) - loaded.logits(ids)).max() > 0.01


def test_the_first_loss_is_the_models_own(model, chats, tmp_path):
    """An untrained adapter changes nothing: step 1's loss is what plain logits give on the same tokens."""
    from anytune.text import build_dataset
    from anytune.train.steps import Steps
    from anytune.train.settings import TrainSettings

    loaded = anytune.load(model, threads=1)
    run = train(loaded, chats, max_steps=1, assistant_loss_only=True, run_dir=str(tmp_path / "r"), **SMALL)
    data = build_dataset(chats, loaded.tokenizer, loaded.template, context=96, assistant_loss_only=True)
    settings = TrainSettings(context=96, ubatch=96, batch=192, max_steps=1)
    ((_, bins),) = Steps(data, settings).after(0)
    total, count = 0.0, 0
    for index in (i for b in bins for i in b):
        ids, loss = data.example(index)
        logits = loaded.logits(ids.tolist()).astype(np.float64)[:-1]
        logp = (
            logits
            - np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1, keepdims=True))
            - logits.max(1, keepdims=True)
        )
        total -= logp[np.arange(len(ids) - 1), ids[1:]][loss[1:]].sum()
        count += int(loss[1:].sum())
    row = run.metrics[0]
    assert row["loss_tokens"] == count
    assert row["loss"] == pytest.approx(total / count, rel=1e-5)


def test_continue_from_an_adapter_and_save_for_peft(model, chats, tmp_path):
    first = train(model, chats, lora=anytune.Lora(rank=4), epochs=2, run_dir=str(tmp_path / "one"), **SMALL)
    second = train(
        model, chats, adapter=first.path, epochs=1, output=tmp_path / "peft", run_dir=str(tmp_path / "two"), **SMALL
    )
    assert second.metrics[0]["loss"] < 0.9 * first.metrics[0]["loss"]
    assert (tmp_path / "peft" / "adapter_config.json").exists()
    loaded = anytune.load(model, threads=1)
    peft = anytune.Adapter.load(tmp_path / "peft", gguf=loaded.gguf)
    for name, pair in second.adapter.tensors.items():
        for ours, theirs in zip(pair, peft.tensors[name], strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_ctrl_c_in_python_is_a_keyboard_interrupt_that_saved(model, chats, tmp_path):
    with pytest.raises(KeyboardInterrupt) as stop:
        anytune.finetune(
            model,
            chats,
            lora=anytune.Lora(rank=4),
            epochs=50,
            run_dir=str(tmp_path / "run"),
            progress=lambda row: row["step"] == 3 and os.kill(os.getpid(), signal.SIGINT),
            **SMALL,
        )
    run = stop.value.run
    assert run.stopped == "interrupted" and run.step == 3 and run.adapter.rank == 4
    assert ckpt.load(run.checkpoint).step == 3


def test_a_run_goes_on_with_another_number_of_threads(model, chats, tmp_path):
    """In the same bytes."""
    options = dict(SMALL, epochs=2, lora=anytune.Lora(rank=4, dropout=0.1))
    calm = train(anytune.load(model, threads=2), chats, run_dir=str(tmp_path / "calm"), **options)
    with pytest.raises(ZeroDivisionError):
        train(
            anytune.load(model, threads=1),
            chats,
            run_dir=str(tmp_path / "run"),
            checkpoint_save_steps=1,
            progress=lambda row: 1 // (3 - row["step"]),
            **options,
        )
    again = anytune.load(model, threads=3)
    run = train(again, chats, run_dir=str(tmp_path / "run"), resume_from="auto", **options)
    assert run.path.read_bytes() == calm.path.read_bytes()


@pytest.mark.parametrize(
    "options, words",
    [
        ({"learning_rate": 1}, "no option"),
        ({"val_file": "x", "val_split": 0.1}, "not both"),
        ({"early_stop": 2}, "--early-stop"),
        ({"lr": -1}, "--learning-rate"),
    ],
)
def test_mistakes_are_sentences(model, chats, options, words, tmp_path):
    with pytest.raises(UserError, match=words):
        train(model, chats, run_dir=str(tmp_path / "r"), **dict(SMALL, **options))
    assert not (tmp_path / "r").exists()


def test_training_on_the_validation_file_is_refused(model, chats):
    with pytest.raises(UserError, match="for validation"):
        train(model, [chats], val_file=str(chats), **SMALL)


def command(model, chats, *more) -> list[str]:
    return [
        sys.executable,
        "-m",
        "anytune",
        "train",
        "-m",
        str(model),
        "-f",
        str(chats),
        "--threads",
        "1",
        "-c",
        "96",
        "-ub",
        "96",
        "-b",
        "96",
        "--num-epochs",
        "3",
        "--assistant-loss-only",
        "--lora-rank",
        "4",
        "--checkpoint-save-steps",
        "1",
        "--resume-from",
        "auto",
        "--run-dir",
        "{run}",
        "--output-adapter",
        "{run}/out.gguf",
        *more,
    ]


def test_killed_from_outside_on_a_real_engine(model, chats, tmp_path):
    line = command(model, chats, "--val-split", "0.2", "--lora-dropout", "0.05")
    started = time.monotonic()
    survive(line, tmp_path / "calm", 0, lambda: None)
    seconds = time.monotonic() - started
    rng = random.Random(3)
    assert survive(line, tmp_path / "killed", 4, lambda: rng.uniform(0.4, 0.9) * seconds) >= 1
    assert same_end(tmp_path / "calm", tmp_path / "killed", "out.gguf") is None


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="signals of another kind")
def test_ctrl_c_ends_with_130_and_says_how_to_go_on(model, chats, tmp_path):
    run = tmp_path / "run"
    line = [part.replace("{run}", str(run)) for part in command(model, chats, "--num-epochs", "500")]
    process = subprocess.Popen(line, stderr=subprocess.PIPE, text=True)
    for text in process.stderr:
        if text.startswith("step"):
            break
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read()
    assert process.wait() == 130, rest
    assert "--resume-from" in rest and "Traceback" not in rest
    found = ckpt.newest(run / "checkpoints", print)
    rows = [json.loads(row) for row in (run / "metrics.jsonl").read_text().splitlines()]
    assert found.step == rows[-1]["step"] and (run / "out.gguf").exists()


def test_smollm2_takes_a_few_steps(tmp_path):
    if os.environ.get("ANYTUNE_REQUIRE_PEERS") != "1":
        from anytune.hub.cache import home
        from anytune.hub.pull import KNOWN

        if not (home() / KNOWN["smollm2-135m"].file).is_file():
            pytest.skip("smollm2-135m has not been pulled")
    from tests.support.models import smollm2

    data = tmp_path / "d.jsonl"
    chat = {
        "messages": [
            {"role": "user", "content": "What is your name?"},
            {"role": "assistant", "content": "I am called Quillfeather the Third."},
        ]
    }
    data.write_text("".join(json.dumps(chat) + "\n" for _ in range(8)))
    run = train(
        smollm2(),
        data,
        assistant_loss_only=True,
        context=64,
        ubatch=128,
        batch=128,
        max_steps=6,
        lr=1e-3,
        scheduler="constant",
        run_dir=str(tmp_path / "run"),
        quiet=True,
    )
    losses = [row["loss"] for row in run.metrics]
    assert losses[-1] < 0.5 * losses[0]
