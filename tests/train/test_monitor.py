"""monitor shows what a run's folder says: while a process trains there, and after."""

import json
import os
import sys
import time
from pathlib import Path

import pytest

from anytune import files
from anytune.errors import UserError
from anytune.train import run_folder as runs
from anytune.train.monitor import RunView, find_run, loss_chart, watch
from anytune.train.timing import Timing
from tests.cli.conftest import cli  # noqa: F401 (fixture)
from tests.train.jobs import job


def test_a_finished_run_tells_what_it_took(tmp_path):
    result, _ = job(tmp_path / "run")
    (tmp_path / "run" / "settings.json").write_text(json.dumps({"total_steps": result.total_steps}))
    view = RunView(tmp_path / "run")
    facts = view.as_dict()
    assert facts["state"] == "finished" and facts["eta_seconds"] is None and facts["last"]["step"] == result.total_steps
    seconds = sum(row["seconds"] for row in result.metrics)
    assert facts["timing"] == result.timing.as_dict()
    assert facts["timing"]["seconds"] == pytest.approx(seconds, abs=1e-3)
    assert facts["timing"]["seconds_per_step"] == pytest.approx(seconds / result.total_steps, abs=1e-4)
    tokens = sum(row["tokens"] for row in result.metrics)
    assert facts["timing"]["tokens_per_s"] == pytest.approx(tokens / seconds, rel=1e-3)
    text = view.text()
    assert f"step {result.total_steps}/{result.total_steps}" in text and "an epoch" in text and "memory" in text
    assert [v.state for v in watch(tmp_path / "run", 0.01)] == ["finished"]


def test_rows_of_older_versions_are_timed_by_their_rate():
    rows = [{"step": n, "epoch": n / 2, "tokens": 100, "tokens_per_s": 50.0} for n in (1, 2)]
    assert Timing.of(rows).as_dict() == {
        "seconds": 4.0,
        "seconds_per_step": 2.0,
        "seconds_per_epoch": 4.0,
        "tokens_per_s": 50.0,
    }
    assert Timing.of([]) is None
    assert Timing(16.0, 50, 50.0, 6700).text() == "Time: 16s of training, 0.32 s a step, 0.32 s an epoch, 419 tokens/s"
    assert (
        Timing(3700.0, 10, 1.0, 3700).text() == "Time: 1h 01m of training, 6m 10s a step, 1h 01m an epoch, 1 tokens/s"
    )
    assert Timing(16.0, 50, 0.0, 6700).text() == "Time: 16s of training, 0.32 s a step, 419 tokens/s"


@pytest.mark.skipif(sys.platform == "win32", reason="nothing is locked there")
def test_whether_a_process_trains_there_is_known_and_asking_disturbs_nobody(tmp_path):
    folder = tmp_path / "run"
    job(folder)
    (folder / "settings.json").write_text(json.dumps({"total_steps": 10**6}))
    read, write = os.pipe()
    child = os.fork()
    if not child:
        with runs.lock(folder):
            os.write(write, b"x")
            time.sleep(60)
        os._exit(0)
    try:
        os.read(read, 1)
        view = RunView(folder)
        assert view.state == "running" and view.as_dict()["eta_seconds"] > 0
        assert "ETA" in view.text()
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
    view.update()
    assert view.state == "stopped"
    # somebody who looks at the moment at which a run starts does not make it fail
    look = os.open(folder / ".lock", os.O_RDONLY)
    import fcntl

    fcntl.flock(look, fcntl.LOCK_SH)
    real = time.sleep

    def let_go(seconds):
        os.close(look)
        real(0)

    files.time.sleep, before = let_go, files.time.sleep
    try:
        with runs.lock(folder):
            pass
    finally:
        files.time.sleep = before


def test_which_run_is_meant(tmp_path, monkeypatch, cli):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no run in"):
        find_run(None)
    for n, name in enumerate(("old", "new")):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "settings.json").write_text('{"total_steps": 3}')
        os.utime(tmp_path / "runs" / name / "settings.json", (1000 + n, 1000 + n))
    assert find_run(None) == Path("runs/new") and find_run("old") == Path("runs/old")
    assert "no step has finished yet" in cli("monitor", "old", code=0).out
    assert cli("monitor", "--json", code=0).json["state"] == "stopped"
    assert "not a run folder" in cli("monitor", "other", code=2).err


def test_logs_of_strangers_do_not_reach_the_terminal(tmp_path):
    (tmp_path / "settings.json").write_text('{"total_steps": "many"}')
    (tmp_path / "train.log").write_bytes(b"fine\n\x1b[2Jwiped\n\xff\n")
    text = RunView(tmp_path).text()
    assert "\x1b" not in text and "fine" in text


def test_the_chart_falls_where_the_loss_falls():
    rows = [{"step": n, "loss": 4 - n / 100} for n in range(1, 301)]
    chart = loss_chart(rows, 30, 6)
    bars = [line.split("│")[1].ljust(30) for line in chart[:-2]]
    heights = [sum(line[c] != " " for line in bars) for c in range(30)]
    assert heights == sorted(heights, reverse=True) and heights[0] == 6 and heights[-1] == 1
    assert loss_chart([{"step": 1, "loss": None}]) == [] and len(loss_chart([{"step": 1, "loss": 2.0}])) > 2
