"""Several processes that train one model: what ProcessGroup does, and what comes of whole runs.

Run as a program (`python -m tests.train.test_process_group NAME FOLDER`) it is one of those processes; NAME is a
function below.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from anytune.train import checkpoint as ckpt
from anytune.distributed import environment, failure
from anytune.distributed import process_group as groups
from anytune.train.checkpoint_manager import CheckpointManager
from anytune.train.run_folder import RunFolder
from tests.train.fake import FakeTrainee
from tests.train.processes import SAME, finish, rows, start, together, train


# ---- ProcessGroup itself -------------------------------------------------------------------------------------------


def methods(folder: Path) -> dict:
    import torch

    from anytune.errors import UserError

    process_group = groups.join(torch.device("cpu"))
    array, tensor = np.full(5, 1.0 + process_group.rank, np.float32), torch.arange(4.0) * (process_group.rank + 1)
    process_group.all_reduce_(array)
    process_group.all_reduce_(tensor[1:3])
    gathered = torch.zeros((2 * process_group.size, 3), dtype=torch.uint8)
    process_group.wait_for(
        process_group.all_gather_(gathered, torch.full((2, 3), process_group.rank, dtype=torch.uint8))
    )
    arrays = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "none": np.zeros(0, np.float32),
        "bytes": np.arange(250, 256, dtype=np.uint8),
    }
    spread = process_group.broadcast_arrays(arrays if process_group.rank == 0 else {})

    def fails():
        raise UserError("no room")

    try:
        heard = process_group.on_rank0(fails)
    except UserError as error:
        heard = f"{type(error).__name__}: {error}"
    found = {
        "array": array.tolist(),
        "tensor": tensor.tolist(),
        "gathered": gathered.tolist(),
        "share": process_group.share(range(7)),
        "heard": heard,
        "arrays": {name: value.tolist() for name, value in spread.items()},
        "dtype": str(spread["bytes"].dtype),
        "sums": process_group.all_reduce([0.1 * (process_group.rank + 1), 1e16 if process_group.rank == 1 else 1.0]),
        "nan": str(process_group.all_reduce([float("nan") if process_group.rank else 0.0])[0]),
        "any": [process_group.any(process_group.rank == 1), process_group.any(False)],
        "least": process_group.minimum(7 - process_group.rank),
        "spread": process_group.broadcast({"rank": process_group.rank, "text": "ü", "none": None}),
        "lead": process_group.on_rank0(lambda: process_group.rank),
    }
    process_group.barrier()
    process_group.close()
    again = groups.join(torch.device("cpu"))  # a second training in the same process
    found["again"] = again.all_reduce([1.0])
    again.close()
    return found


def test_what_every_process_hears(tmp_path):
    found = together("methods", tmp_path, 3)
    for rank, got in enumerate(found):
        assert got["share"] == list(range(7))[rank::3]
        assert got["heard"] == ("UserError: no room" if rank == 0 else "PeerError: UserError: no room")
        assert got["array"] == [6.0] * 5 and got["tensor"] == [0.0, 6.0, 12.0, 3.0 * (rank + 1)]
        assert got["gathered"] == [[r] * 3 for r in (0, 0, 1, 1, 2, 2)]
        assert got["arrays"] == {"a": [[0, 1, 2], [3, 4, 5]], "none": [], "bytes": list(range(250, 256))}
        assert got["dtype"] == "uint8"
        assert got["sums"] == [(0.1 + 0.2) + 0.1 * 3, (1.0 + 1e16) + 1.0] and got["nan"] == "nan"
        assert got["any"] == [True, False] and got["least"] == 5 and got["lead"] == 0 and got["again"] == [3.0]
        assert got["spread"] == {"rank": 0, "text": "ü", "none": None}


def vanish(folder: Path) -> dict:
    """Rank 1 ends without a word, in the middle of things."""
    process_group = groups.join()
    process_group.barrier()
    if process_group.rank == 1:
        os._exit(0)
    try:
        process_group.all_reduce([1.0])
    except failure.WorkerLost as error:
        process_group.abort()
        return {"lost": str(error)}
    return {}


def test_a_process_that_vanishes_is_noticed(tmp_path):
    (_, text), _ = finish(start(["tests.train.test_process_group", "vanish", str(tmp_path)], tmp_path))
    assert "lost the others" in json.loads(text.splitlines()[-1])["lost"]


def hang(folder: Path) -> dict:
    """Rank 0 waits for something that torch knows nothing of, while rank 1 is gone."""
    groups.GRACE = 0.5
    process_group = groups.join()
    process_group.barrier()
    if process_group.rank == 1:
        os._exit(0)
    time.sleep(60)
    return {}


def test_a_process_that_waits_in_vain_is_ended(tmp_path):
    (code, text), _ = finish(start(["tests.train.test_process_group", "hang", str(tmp_path)], tmp_path))
    assert code == 1 and "process 1 of 2 is gone" in text and "Traceback" not in text


def test_a_checkpoint_counts_as_soon_as_it_is_written(tmp_path, monkeypatch):
    """A process that is gone before it hears of it does not make the older one the last: that is removed."""

    class Alone(groups.SingleProcess):
        def on_rank0(self, work):
            super().on_rank0(work)
            raise failure.WorkerLost("process 0 of 2 lost the others")

    words, folder = tmp_path / "words", RunFolder(tmp_path, tmp_path / "checkpoints")
    for path in (words, folder.checkpoints):
        path.mkdir()
    monkeypatch.setenv(failure.REPORT, str(words))
    keeper = CheckpointManager(FakeTrainee(), folder, Alone(), print, 1)
    for step in (3, 6):
        with pytest.raises(failure.WorkerLost):
            keeper.save(step, lambda: {"best": None})
        (last,) = ckpt.listing(folder.checkpoints)
        assert last.name.endswith(f"_{step:08d}") and (keeper.saved, keeper.saved_step) == (last, step)
        assert (words / "saved-0").read_text("utf-8") == str(last)


def test_one_process_is_no_group(monkeypatch):
    for name in environment.TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    solo = groups.join()
    assert (solo.size, solo.all_reduce([1, 2]), solo.any(True), solo.share([1, 2])) == (1, [1.0, 2.0], True, [1, 2])
    assert environment.local_device("cuda") == "cuda" and solo.on_rank0(lambda: {1: "anything"}) == {1: "anything"}
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    assert environment.torchrun_variables() == {}
    from anytune.errors import UserError

    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="LOCAL_RANK is not"):
        environment.torchrun_variables()
    for name, value in (("LOCAL_RANK", "1"), ("MASTER_ADDR", "here"), ("MASTER_PORT", "x")):
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="MASTER_PORT=x"):
        environment.torchrun_variables()
    monkeypatch.setenv("MASTER_PORT", "1")
    assert environment.local_device("cuda") == "cuda:1" and environment.local_device("cpu-torch") == "cpu-torch"


# ---- trainings ---------------------------------------------------------------------------------------------


def trainings(folder: Path) -> dict:
    """One after the other in the same processes: whole, sharded, and from the checkpoint of a lonely run."""
    from anytune.engine.torch import slices

    made, known = {}, []
    real = slices.Slices.__init__

    def noted(self, *args):
        real(self, *args)
        if not self.buffers[0].is_meta:  # a plan's dry run has slices too, which are only shapes
            known.append(self)

    slices.Slices.__init__ = noted
    late = []
    resumed = str(folder / "one" / "checkpoints" / "checkpoint_step_00000005")
    for name, changes in (
        ("two", {}),
        ("one-two", {"resume_from": resumed}),
        ("shard", {"shard": True, "progress": lambda row: late.append(known[0].late)}),
    ):
        run = train(folder, name, **changes)
        made[name] = str(run.path)
        run.adapter.save(folder / f"{name}-{os.environ['RANK']}.gguf")
    made["late"], made["slices"] = late, len(known)
    return made


@pytest.mark.parametrize("name", ["two", "shard", "one-two", "two-one"])
def test_the_curve_is_that_of_one_process(jobs, name):
    folder, _ = jobs
    one = rows(folder / "one")
    got = rows(folder / name)
    one = one[-len(got) :]
    assert len(got) == (7 if "-" in name else 12)  # a resume in a folder of its own has the rows after it
    for ours, theirs in zip(got, one, strict=True):
        assert [ours[key] for key in SAME] == [theirs[key] for key in SAME]
        for key in ("loss", "grad_norm", "val_loss"):
            assert ours[key] == (theirs[key] and pytest.approx(theirs[key], rel=1e-4)), (ours["step"], key)


@pytest.mark.parametrize("name", ["two", "shard", "one-two"])
def test_every_process_ends_in_the_same_bytes(jobs, name):
    folder, _ = jobs
    first = (folder / name / "adapter.gguf").read_bytes()
    assert first == (folder / f"{name}-0.gguf").read_bytes() == (folder / f"{name}-1.gguf").read_bytes()
    if name == "shard":
        assert first == (folder / "two" / "adapter.gguf").read_bytes()


def test_slices_are_foreseen(jobs):
    late = jobs[1][0]["late"]
    assert jobs[1][0]["slices"] == jobs[1][1]["slices"] == 1
    # the first pass of a kind, here training and validation, meets each of the two layers unprepared
    assert (late[0], late[-1]) == (2, 4)


def test_a_resume_says_that_sums_round_differently(jobs):
    folder, _ = jobs
    assert "processes 2" in (folder / "one-two" / "train.log").read_text()
    info = ckpt.load(folder / "two" / "checkpoints" / "checkpoint_step_00000010").info
    assert info["engine"]["processes"] == 2 and "processes" not in json.dumps(info["identity"])


def differ(folder: Path) -> dict:
    """Each of these would lead the processes apart, and one then waits for the other."""
    from anytune.errors import UserError

    said = []
    for changes in ({"lr": 6e-3}, {"checkpoint_save_steps": 2}, {"shard": True}):
        try:
            train(folder, "never", **(changes if os.environ["RANK"] == "1" else {}))
        except UserError as error:
            said.append(str(error))
    return {"said": said}


def test_processes_that_were_given_different_things_are_refused(jobs, tmp_path):
    folder = jobs[0]
    zero, one = (found["said"] for found in together("differ", folder))
    names = "--learning-rate (0.005 there, 0.006 here)", "--checkpoint-save-steps (5 there, 2 here)", "--shard (false"
    for said, what in zip(one, names, strict=True):
        assert what in said and "process 1" in said
    assert len(zero) == 3 and all("another process" in said for said in zero)
    assert not (folder / "never").exists()


@pytest.mark.parametrize(("asked", "size", "want"), [(None, 1, 6), (6, 2, 6), (None, 2, 4), (None, 9, 1)])
def test_processes_of_one_machine_share_its_cores(monkeypatch, asked, size, want):
    from anytune.engine.numpy.engine import NumpyEngine
    from anytune.train import together as processes

    engine, process_group = NumpyEngine(6), groups.SingleProcess()
    process_group.size = process_group.local_size = size
    monkeypatch.setattr(processes, "cores", lambda: 8)
    processes.share_cores(engine, asked, process_group)
    assert engine.workers.count == want
    engine.workers.close()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    print(json.dumps(globals()[sys.argv[1]](Path(sys.argv[2]))), flush=True)
