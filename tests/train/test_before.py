"""A checkpoint, an adapter and a run's folder of an earlier version (before/, commit 53b7833) load and continue."""

import json
import shutil
from pathlib import Path

import numpy as np

import anytune
from anytune.cli.main import run

BEFORE = Path(__file__).parent / "before"


def test_an_earlier_checkpoint_goes_on_to_the_same_adapter(tmp_path, monkeypatch):
    """Eight steps, of which the last four are this version's. Sums differ between processors, so not by bytes."""
    shutil.copytree(BEFORE, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "adapter.gguf").rename("wanted.gguf")
    command = (
        "train -m model.gguf -f chats.jsonl -c 128 -ub 128 -b 128 --num-epochs 3 --max-steps 8 --learning-rate 2e-4 "
        "--lora-rank 2 --lora-alpha 32 --device numpy -t 1 --output-adapter adapter.gguf --run-dir run -q "
        "--resume-from run/checkpoints/checkpoint_step_00000004"
    )
    assert run(command.split()) == 0
    wanted, got = (anytune.Adapter.load(name) for name in ("wanted.gguf", "adapter.gguf"))
    assert wanted.tensors.keys() == got.tensors.keys() and wanted.scale == got.scale
    for name, pair in wanted.tensors.items():
        for a, b in zip(pair, got.tensors[name]):
            np.testing.assert_allclose(b, a, rtol=1e-3, atol=1e-6)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text("utf-8").splitlines()]
    earlier = [json.loads(line) for line in (BEFORE / "run" / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6, 7, 8]
    np.testing.assert_allclose([row["loss"] for row in rows], [row["loss"] for row in earlier], rtol=1e-5)


def test_an_earlier_run_is_shown(tmp_path, capsys):
    shutil.copytree(BEFORE / "run", tmp_path / "run")
    assert run(["monitor", str(tmp_path / "run"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["last"]["step"] == 8 and facts["total_steps"] == 8
