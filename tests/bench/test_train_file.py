"""bench --train-file: real steps on a user's data, and the time that an epoch and a training of them take."""

import json

import numpy as np
import pytest

import anytune
from anytune.benchmark.file_training import FileTraining
from anytune.benchmark.cases import Settings
from anytune.benchmark.table import _time, epochs
from tests.cli.conftest import cli, model  # noqa: F401 (fixtures)

ROWS = [{"prompt": f"why {n}", "completion": "the wind " * n} for n in range(1, 20)]


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "private" / "d.jsonl"
    path.parent.mkdir()
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def test_the_steps_are_those_of_training(model, data, tmp_path):
    loaded = anytune.load(model, device="numpy", threads=1)
    work = FileTraining(loaded, Settings(train_file=str(data), context=64, ubatch=64, batch=128, rank=2))
    tokens = [work.take()[0] for _ in range(2 * len(work.order_of_steps.steps_of(0)))]
    assert sum(tokens) == 2 * work.facts["training"]["tokens_per_epoch"]
    run = anytune.finetune(
        loaded,
        data,
        lora=anytune.Lora(rank=2),
        epochs=1,
        context=64,
        ubatch=64,
        batch=128,
        run_dir=str(tmp_path / "run"),
    )
    assert [row["tokens"] for row in run.metrics] == tokens[: len(tokens) // 2]
    assert run.step == work.facts["training"]["steps_per_epoch"] and np.isfinite(work.round())


def test_the_command_prints_the_published_columns_and_names_no_folder(cli, model, data, tmp_path):
    out = cli(
        "bench",
        "-m",
        model,
        "--device",
        "numpy",
        "-t",
        1,
        "--train-file",
        data,
        "--num-epochs",
        8,
        "-c",
        64,
        "-ub",
        64,
        "-b",
        64,
        "-r",
        3,
        "-o",
        tmp_path / "r.json",
        code=0,
    ).out
    assert "| tokens/s | time/step | time/epoch | full training (8 epochs) |" in " ".join(out.split())
    assert "train file" in out and "pp512" not in out and "private" not in out
    made = json.loads((tmp_path / "r.json").read_text())
    (row,) = made["results"]
    assert "private" not in (tmp_path / "r.json").read_text()
    assert made["settings"]["train_file"] == "d.jsonl" and row["training"]["epochs"] == 8 and row["tokens_per_s"] > 0
    lines = epochs(made)
    assert lines[0].startswith("| model") and row["model"] in lines[2]


def test_others_are_measured_where_they_are_named(cli, model, data):
    found = json.loads(
        cli(
            "bench",
            "-m",
            model,
            "--device",
            "numpy",
            "-t",
            1,
            "--train-file",
            data,
            "-c",
            64,
            "-r",
            1,
            "-p",
            8,
            "-n",
            0,
            "--train",
            0,
            "--json",
            code=0,
        ).out
    )
    assert [row["test"] for row in found["results"]] == ["train file", "pp8"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(1.1, "1.1s"), (21, "21s"), (332, "5m 32s"), (6000, "1h 40m"), (0.0123, "0.012s"), (59.7, "60s")],
)
def test_times_are_written_as_published(seconds, text):
    assert _time(seconds) == text


def test_bad_data_is_a_line_of_the_table(cli, model, tmp_path):
    assert "no data file" in cli("bench", "-m", model, "--train-file", tmp_path / "no.jsonl", code=2).err.lower()
    (tmp_path / "bad.jsonl").write_text('{"messages": []}\n')
    out = cli("bench", "-m", model, "--device", "numpy", "--train-file", tmp_path / "bad.jsonl", "-r", 1, code=1).out
    assert "failed" in out and "bad.jsonl" in out
