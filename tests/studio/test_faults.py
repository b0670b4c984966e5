"""What happens to a machine is said on the run, with what to do, and the run can go on: a full disk, a full GPU.

A base file that was moved is in test_kill.py."""

import errno
import json
import os

import pytest

from anytune.studio import jobs, process
from anytune.studio.home import Home
from tests.studio.server import chats
from tests.support import tiny
from tests.support.require import need
from tests.train.jobs import operations


@pytest.fixture
def job(tmp_path):
    """A run's folder, queued."""
    model, data = tiny.write(tmp_path / "tiny.gguf", "qwen3"), tmp_path / "chats.jsonl"
    data.write_bytes(chats())
    made = jobs.create(
        Home(tmp_path / "home"),
        "train",
        {
            "model": {"name": "tiny", "file": str(model)},
            "data": {"name": "chats", "file": str(data), "id": "x", "version": 1},
            "lora": {"rank": 2},
            "device": "numpy",
            "threads": 1,
            "settings": {"context": 64, "ubatch": 64, "batch": 64, "max_steps": 6, "checkpoint_save_steps": 2},
        },
        "run",
    )
    return made


def ended(folder):
    """Let the job's work be done here, and tell how it stands."""
    process.main(folder)
    return jobs.state_of(folder)


def again(folder):
    jobs.set_state(folder, "queued")
    return ended(folder)


@pytest.mark.parametrize("after", [1, 12, 40])
def test_a_full_disk_is_said_and_the_run_goes_on_when_there_is_room(job, after):
    count, refused = 0, 0

    def before(name):
        nonlocal count, refused
        if name not in ("write", "fsync") or not (job / ".ballast").exists():
            return  # the last words have the ballast's place
        count += 1
        if count > after:
            refused += 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with operations(before):
        state = ended(job)
    assert refused
    assert state["state"] == "failed", state
    assert "space" in state["message"].lower() or "room" in state["message"].lower(), state
    assert "Traceback" not in state["message"] and "Internal error" not in state["message"], state
    state = again(job)
    assert state["state"] == "finished", state
    assert [row["step"] for row in map(json.loads, (job / "metrics.jsonl").read_text().splitlines()) if "loss" in row][
        -1
    ] == 6


def test_a_gpu_without_room_is_said_with_what_to_do(job, monkeypatch):
    torch = need("torch")
    from anytune.engine.torch.engine import TorchEngine

    description = json.loads((job / "job.json").read_text())
    description["spec"]["device"] = "cpu-torch"
    (job / "job.json").write_text(json.dumps(description))
    steps, real = [], TorchEngine.adamw

    def adamw(self, *args, **more):
        steps.append(1)
        if len(steps) == 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return real(self, *args, **more)

    monkeypatch.setattr(TorchEngine, "adamw", adamw)
    state = ended(job)
    assert state["state"] == "failed" and "ran out of memory" in state["message"], state
    assert "-ub" in state["message"] and "--memory" in state["message"]
    assert again(job)["state"] == "finished"
