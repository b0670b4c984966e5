"""Before step 1: the report, the trial save, room on the disk; and what is printed later."""

import io
from types import SimpleNamespace

import pytest

from anytune.errors import UserError
from anytune.train import preflight
from anytune.train.steps import Steps
from anytune.train.progress import Console, duration, progress_line, size
from anytune.train.settings import TrainSettings
from tests.train.fake import FakeAdapter, FakeProduct, FakeTrainee, chain_dataset
from tests.train.jobs import full_disk, operations

ROW = {
    "step": 3,
    "epoch": 0.5,
    "loss": 2.345678,
    "val_loss": None,
    "lr": 2e-4,
    "grad_norm": 1.0,
    "tokens": 100,
    "loss_tokens": 50,
    "tokens_per_s": 1234.5,
    "rss_bytes": 1,
}


def test_report_says_all_that_matters():
    settings = TrainSettings(ubatch=32, batch=96, epochs=3)
    plan = Steps(chain_dataset(), settings)
    text = preflight.report(FakeTrainee(), plan, chain_dataset(5), settings, 1e10)
    for part in (
        "192 parameters",
        "40 examples",
        f"{plan.total} in 3 epochs",
        "Memory: about 1 MiB",
        ": about ",
        "5 more for validation",
    ):
        assert part in text, text


def test_the_trial_save_leaves_nothing(tmp_path):
    preflight.trial_save(FakeTrainee().adapter(), tmp_path / "new" / "a.gguf", FakeAdapter.load)
    assert list((tmp_path / "new").iterdir()) == []


def test_the_trial_save_finds_a_bad_place(tmp_path):
    adapter = FakeTrainee().adapter()
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="--output-adapter"):
        preflight.trial_save(adapter, tmp_path / "file" / "a.gguf", FakeAdapter.load)
    with operations(full_disk(1, ("fsync",))), pytest.raises(UserError, match="No space left"):
        preflight.trial_save(adapter, tmp_path / "a.gguf", FakeAdapter.load)

    def lossy(path):
        found = FakeAdapter.load(path)
        found.tensors["bigram"] = (found.tensors["bigram"][0] * 2, found.tensors["bigram"][1])
        return found

    with pytest.raises(UserError, match="reads back differently"):
        preflight.trial_save(adapter, tmp_path / "a.gguf", lossy)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_the_disk_is_checked(tmp_path, monkeypatch):
    trainee, settings = FakeTrainee(), TrainSettings()
    preflight.check_disk(
        trainee, FakeProduct(trainee), [tmp_path / "no" / "yet", tmp_path], settings, 10, tmp_path / "a.gguf"
    )
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(UserError, match="--keep-checkpoints"):
        preflight.check_disk(trainee, FakeProduct(trainee), [tmp_path, tmp_path], settings, 10, None)


def test_plain_lines_when_not_a_terminal(tmp_path):
    stream = io.StringIO()
    console = Console(stream, every=1e9)
    console.say("before")
    console.log_to(tmp_path / "log")
    for step in range(1, 11):
        console.step(dict(ROW, step=step, val_loss=1.5 if step == 5 else None), 10, 60.0)
    console.say("after")
    console.close()
    lines = stream.getvalue().splitlines()
    assert [line.split()[1] for line in lines if line.startswith("step")] == ["1/10", "5/10", "10/10"]
    assert "\r" not in stream.getvalue()
    log = (tmp_path / "log").read_text()
    assert "before" in log and "after" in log and "step" not in log


def test_one_moving_line_on_a_terminal():
    stream = io.StringIO()
    stream.isatty = lambda: True
    console = Console(stream)
    console.step(ROW, 10, 3700)
    console.step(dict(ROW, loss=1.0), 10, None)
    console.say("done")
    text = stream.getvalue()
    assert text.count("\r") == 2 and text.endswith("\ndone\n") and "ETA 1h 01m" in text


def test_a_stream_that_breaks_does_not_stop_training():
    class Gone(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    console = Console(Gone())
    console.say("x")
    console.step(ROW, 10, 1.0)
    console.close()


def test_words():
    assert [duration(s) for s in (0.2, 5.2, 70, 3700)] == ["0s", "5s", "1m 10s", "1h 01m"]
    assert [size(n) for n in (10, 300 << 20, 3 << 29)] == ["10 B", "300 MiB", "1.5 GiB"]
    line = progress_line(dict(ROW, val_loss=1.5), 10, 60, 1.5)
    assert "val 1.5000 (best)" in line and "loss 2.3457" in line and "1,234 tok/s" in line
