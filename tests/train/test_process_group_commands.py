"""Several processes from the command line: how the parent of --gpus ends them, kills, Ctrl-C, torchrun, mistakes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from anytune.train import checkpoint as ckpt
from anytune.distributed import failure
from tests.train.processes import child, finish, line, linux, places, rows, start, until

FAMILIES = {  # what each process does -> the job's exit code, how the second ended, words
    "all is well": ("0", "0", 0, 0, ""),
    "asked to stop": ("130", "130", 130, 130, ""),
    "asked to stop while one waits for the others": ("130", "time.sleep(60)", 130, -9, ""),
    "one fails and says why": (
        "0",
        "print('anytune: no such file') or 2",
        2,
        2,
        "process 1 of 2 ended with exit code 2 (no such file); there is no checkpoint yet.",
    ),
    "one is killed while the other waits": (
        "os.kill(os.getpid(), 9)",
        "time.sleep(60)",
        1,
        -9,
        "process 0 of 2 was killed by SIGKILL; there is no checkpoint yet.",
    ),
    "one is gone and the other leaves a word": (
        "told('saved', 'here') or told('ended', 'lost') or 1",
        "os.kill(os.getpid(), 15)",
        1,
        -15,
        "process 1 of 2 was killed by SIGTERM; the last checkpoint is here: ",
    ),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_how_a_family_ends(name, monkeypatch, tmp_path, capsys):
    from anytune.distributed import launch

    first, second, code, last, words = FAMILIES[name]
    monkeypatch.setattr(launch, "PATIENCE", 1.0)
    family = launch._Family([], 2, "cpu-torch", tmp_path, False)
    family.command = [
        sys.executable,
        "-c",
        f"""
import os, sys, time
rank = int(os.environ["RANK"])
def told(name, text):
    with open(os.path.join(os.environ[{failure.REPORT!r}], f"{{name}}-{{rank}}"), "w") as file:
        file.write(text)
sys.exit(({second}) if rank else ({first}))
""",
    ]
    assert family.run() == code
    said = capsys.readouterr().err
    assert words in said and bool(said) == bool(words)
    assert family.children[1].returncode == last


@linux
def test_a_killed_process_ends_the_job_and_ctrl_c_saves(jobs, tmp_path):
    folder, run = jobs[0], tmp_path / "run"
    command = [sys.executable, "-m", *line(folder, str(run), "--gpus", "2", "--resume-from", "auto")]
    env = {**os.environ, "PYTHONPATH": places(0, 1, 0)["PYTHONPATH"]}
    job = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until(run / "metrics.jsonl", 5)
    os.kill(child(job.pid, 1), signal.SIGKILL)
    ((code, text),) = finish([job])  # which gives up long before the 2000 epochs are over
    assert code == 1
    last = text.splitlines()[-1]
    assert "process 1 of 2 was killed by SIGKILL" in last and "--resume-from auto" in last and "Traceback" not in text
    saved = ckpt.newest(run / "checkpoints", print)
    assert saved.step >= 3 and str(saved.path) in last

    job = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until(run / "metrics.jsonl", saved.step + 4)
    job.send_signal(signal.SIGINT)
    ((code, text),) = finish([job])
    assert code == 130 and f"Continuing after step {saved.step} " in text and "--resume-from" in text, text
    assert text.count("Stopping after this micro-batch") == 1 and "Traceback" not in text
    after = ckpt.newest(run / "checkpoints", print)
    assert after.step == rows(run)[-1]["step"] > saved.step and (run / "adapter.gguf").exists()


@linux
def test_processes_stop_in_good_order_when_their_parent_is_killed(jobs, tmp_path):
    run = tmp_path / "run"
    job = subprocess.Popen(
        [sys.executable, "-m", *line(jobs[0], str(run), "--gpus", "2")],
        env={**os.environ, "PYTHONPATH": places(0, 1, 0)["PYTHONPATH"]},
        stderr=subprocess.PIPE,
    )
    until(run / "metrics.jsonl", 4)
    children = [child(job.pid, rank) for rank in (0, 1)]
    job.kill()
    job.communicate(timeout=60)  # until the last of them has closed it
    end = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in children) and time.monotonic() < end:
        time.sleep(0.05)
    assert ckpt.newest(run / "checkpoints", print).step == rows(run)[-1]["step"] and (run / "adapter.gguf").exists()


@linux
def test_ctrl_c_on_one_process_stops_all_and_a_lost_one_is_a_sentence(jobs, tmp_path):
    folder = jobs[0]
    both = start(line(folder, str(tmp_path / "a")), tmp_path)
    until(tmp_path / "a" / "metrics.jsonl", 2)
    both[1].send_signal(signal.SIGINT)
    ends = finish(both)
    assert [code for code, _ in ends] == [130, 130] and ends[1][1] == "", ends
    assert ckpt.newest(tmp_path / "a" / "checkpoints", print).step == rows(tmp_path / "a")[-1]["step"]

    both = start(line(folder, str(tmp_path / "b")), tmp_path)
    until(tmp_path / "b" / "metrics.jsonl", 4)
    both[1].kill()
    code, text = finish(both)[0]
    assert code == 1 and "Traceback" not in text
    assert "lost the others" in text.splitlines()[-1] and "checkpoint_step_0000" in text.splitlines()[-1]


def test_torchrun_starts_the_same(jobs, tmp_path):
    folder = jobs[0]
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        *line(folder, str(tmp_path / "run"), "--max-steps", "2", "--lora-rank", "4", "--json"),
    ]
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": places(0, 1, 0)["PYTHONPATH"]},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)  # process 0's alone
    assert facts["step"] == 2 and done.stderr.count("Finished after step 2") == 1
    with open(folder / "one" / "metrics.jsonl") as file:
        assert facts["last"]["loss_tokens"] > 0 and json.loads(file.readline())["loss_tokens"] > 0


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--device", "cpu-torch", "--gpus", "1000"], "1000 is more than available: this machine has"),
        (["--device", "cuda:1", "--gpus", "2"], "--device cuda"),
        (["--shard"], "--gpus N` or torchrun"),
        (["--device", "numpy", "--shard"], "--gpus N` or torchrun"),
    ],
)
def test_mistakes_are_one_sentence(jobs, more, words, capsys, tmp_path, monkeypatch):
    from anytune.cli.main import run

    monkeypatch.chdir(tmp_path)
    assert run([*line(jobs[0], "run")[1:], *more]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1 and not (tmp_path / "run").exists()


def test_more_gpus_than_there_are(jobs, capsys, tmp_path, monkeypatch):
    import torch

    from anytune.cli.main import run

    monkeypatch.chdir(tmp_path)
    count = torch.cuda.device_count() + 1
    assert run([*line(jobs[0], "run")[1:], "--device", "cuda", "--gpus", str(count)]) == 2
    assert f"--gpus {count} is more than available" in capsys.readouterr().err
