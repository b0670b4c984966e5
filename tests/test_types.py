"""The types that a user's own script gets from anytune, as mypy tells them."""

import os
import subprocess
import sys
from pathlib import Path

import anytune
from tests.support.require import need

SCRIPT = """
from collections.abc import Iterator
from pathlib import Path
from typing import Any, assert_type

import anytune


def watch(row: dict[str, Any]) -> bool:
    return bool(row["loss"] > 0.05)


with anytune.load("smollm2-135m", device="cpu") as model:
    assert_type(model, anytune.Model)
    how = anytune.Callbacks(on_step=watch, on_checkpoint=lambda path: print(path.name))
    run = anytune.finetune(model, "chats.jsonl", lora=anytune.Lora(rank=8), epochs=2, learning_rate=1e-4, callbacks=how)
    assert_type(run, anytune.Run)
    run.adapter.save("adapter.gguf")
    assert_type(run.metrics, list[dict[str, Any]])
    assert_type(run.run_dir, Path)
    assert_type(anytune.generate(model, "One?", adapter=run, max_tokens=3), str)
    assert_type(anytune.generate("model.gguf", ["One?", "Two?"], adapter=[run, "a.gguf", Path("b")]), list[str])
    assert_type(model.generate([{"role": "user", "content": "One?"}], adapter=run.adapter), str)
    assert_type(model.generate(["One?"]), list[str])
    assert_type(model.generate([1, 2, 3], temperature=0.0), str)
    assert_type(anytune.stream(model, "One?"), Iterator[str])
    chat = anytune.Conversation("model.gguf", run, system="Be brief.", seed=1)
    assert_type(chat.ask("One?"), str)
    assert_type(chat.say("One?"), Iterator[str])
    assert_type(anytune.verify(model, run), dict[str, Any])
    assert_type(anytune.perplexity(model, "text", run), dict[str, Any])
    assert_type(anytune.evaluate(model, {"mine": run}, "heldout.jsonl"), dict[str, Any])
    assert_type(anytune.quantize("a.gguf", Path("b.gguf"), "Q4_0"), dict[str, Any])
    assert_type(anytune.merge(model, run, "merged.gguf"), dict[str, Any])
    assert_type(anytune.export(model, run, "mine-peft", format="peft"), dict[str, Any])
    assert_type(anytune.pull("smollm2-135m"), Path)
    assert_type(anytune.Adapter.load("a.gguf"), anytune.Adapter)
    assert_type(anytune.finetune(Path("m.gguf"), [{"text": "One."}], full=anytune.Full()), anytune.Run)
"""
WRONG = """
import anytune

model = anytune.load("model.gguf", devise="cpu")
anytune.finetune(model, 3)
anytune.finetune(model, "x", epoks=2)
anytune.export(model, "a.gguf", "x", format="foo")
anytune.generate(model, "One?", max_tokens="3")
anytune.generate(model, "One?", 3)
anytune.Conversation(model, chat=True)
"""


def test_a_script_gets_types_and_is_told_of_mistakes(tmp_path):
    need("mypy")
    for name, text in (("right", SCRIPT), ("wrong", WRONG)):
        (tmp_path / f"{name}.py").write_text(text, "utf-8")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy",
            "--strict",
            "--follow-imports=silent",
            "--no-error-summary",
            "right.py",
            "wrong.py",
        ],
        cwd=tmp_path,
        env=os.environ | {"MYPYPATH": str(Path(anytune.__file__).parents[1])},
        capture_output=True,
        text=True,
    )
    found = [line for line in done.stdout.splitlines() if ": error:" in line]
    assert not [line for line in found if line.startswith("right")], done.stdout + done.stderr
    lines = {int(line.split(":")[1]) for line in found}
    assert lines == set(range(4, 11)), done.stdout
