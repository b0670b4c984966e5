"""Several processes that train a model's own weights: the curve of one process, and the same bytes in each.

Run as a program (`python -m tests.train.test_process_group_full NAME FOLDER`) it is one of those processes.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import pytest

import anytune
from anytune.errors import UserError
from anytune.train import checkpoint as ckpt
from tests.train.processes import SAME, rows, together, train, write_inputs

HOW = {"full": anytune.Full(optimizer="adamw8bit"), "epochs": 2, "lr": 1e-3}  # 8 steps; its state has bytes, too


def trainings(folder: Path) -> dict:
    """From the file, and from the checkpoint of a lonely run, whose state process 0 has to send."""
    made, resumed = {}, str(folder / "one" / "checkpoints" / "checkpoint_step_00000005")
    for name, changes in (
        ("two", {}),
        ("numpy-two", {"device": "numpy", "threads": 1}),
        ("one-two", {"resume_from": resumed}),
    ):
        train(folder, name, **{**HOW, **changes})
        state = ckpt.load(folder / name / "checkpoints" / "checkpoint_step_00000008").tensors()
        made[name] = hashlib.sha256(b"".join(state[key].tobytes() for key in sorted(state))).hexdigest()
    try:
        train(folder, "never", shard=True, **HOW)
    except UserError as error:
        made["shard"] = str(error)
    return made


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("process_group-full")
    write_inputs(folder)
    train(folder, "one", **HOW)
    return folder, together("trainings", folder, module="tests.train.test_process_group_full")


@pytest.mark.parametrize("name", ["two", "numpy-two", "one-two"])
def test_the_curve_is_that_of_one_process(jobs, name):
    folder, made = jobs
    one, got = rows(folder / "one"), rows(folder / name)
    one = one[-len(got) :]
    assert len(got) == (3 if name == "one-two" else 8)
    for ours, theirs in zip(got, one, strict=True):
        assert [ours[key] for key in SAME] == [theirs[key] for key in SAME]
        for key in ("loss", "grad_norm", "val_loss"):
            assert ours[key] == (theirs[key] and pytest.approx(theirs[key], rel=2e-3)), (ours["step"], key)
    assert made[0][name] == made[1][name]


def test_a_base_that_is_trained_is_not_shared_out(jobs):
    for found in jobs[1]:
        assert "--shard" in found["shard"] and "--full" in found["shard"]
    assert not (jobs[0] / "never").exists()


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](Path(sys.argv[2]))), flush=True)
