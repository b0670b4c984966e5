"""The demo runs from end to end without a terminal: on a tiny model, with llama.cpp as the judge."""

import os
import subprocess
import sys
from pathlib import Path

from tests.support import tiny
from tests.support.require import need

ROOT = Path(__file__).parents[1]


def test_the_demo_runs_without_a_terminal(tmp_path):
    need("xllamacpp")
    tiny.write(tmp_path / "model.gguf", "llama-tied")
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "examples" / "demo.py"),
            "-m",
            "model.gguf",
            "--steps",
            "2",
            "--svg",
            "picture.svg",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert "PASS" in done.stdout and "step   2/2" in done.stdout
    assert done.stdout.count("─ before") >= 6 and done.stdout.count("─ after") == 3
    (run,) = (tmp_path / "runs").iterdir()
    assert {"adapter.gguf", "metrics.jsonl", "loss.svg", "settings.json", "train.log"} <= set(os.listdir(run))
    assert str(run.relative_to(tmp_path)) in done.stdout
    assert (tmp_path / "picture.svg").read_text("utf-8").startswith("<svg")


def test_a_missing_model_is_one_sentence(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "demo.py"), "-m", str(tmp_path / "none.gguf")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("demo: ") and "Traceback" not in done.stderr
