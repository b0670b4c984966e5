"""The loop: what a step is, how a run ends, and what it leaves."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest

from anytune.errors import UserError
from anytune.text.packing import make_batch
from anytune.train.callbacks import Calls
from anytune.train import checkpoint as ckpt
from anytune.train.metrics import COLUMNS, MetricsFile, read
from anytune.train.steps import Steps
from anytune.train.settings import TrainSettings
from tests.support.require import need
from tests.train.fake import VOCABULARY, FakeAdapter, FakeTrainee, chain_dataset
from tests.train.jobs import SETTINGS, job


def test_it_learns(tmp_path):
    result, _ = job(tmp_path / "run", epochs=15)
    losses = [row["loss"] for row in result.metrics]
    assert losses[0] == pytest.approx(math.log(VOCABULARY), rel=1e-4)  # b starts at zero: uniform
    assert np.mean(losses[-5:]) < 0.75 * losses[0]
    assert result.best["val_loss"] < 0.8 * losses[0]


def test_steps_are_normalised_by_their_own_loss_tokens(tmp_path):
    trainee = FakeTrainee()
    result, trainer = job(tmp_path / "run", trainee=trainee)
    rows = {row["step"]: row for row in result.metrics}
    for step, row in rows.items():
        seen = [s for s in trainee.seen if s[0] == step]
        assert [s[1] for s in seen] == list(range(len(seen)))  # micro-batches counted from 0
        total = sum(s[3] for s in seen)
        assert row["loss_tokens"] == total and all(s[4] == 1 / total for s in seen)
    data = trainer.train
    assert sum(row["tokens"] for row in rows.values()) == SETTINGS["epochs"] * data.tokens
    assert sum(row["loss_tokens"] for row in rows.values()) == SETTINGS["epochs"] * data.loss_tokens


def test_accumulation_equals_one_big_micro_batch(tmp_path):
    """The same examples in one micro-batch or in many: the same step, up to rounding."""
    data = chain_dataset(12)
    one, many = FakeTrainee(dropout=0), FakeTrainee(dropout=0)
    total = int(data.tokens)
    for trainee, ubatch in ((one, total), (many, 30)):
        job(
            tmp_path / f"run{ubatch}", train=data, val=False, trainee=trainee, ubatch=ubatch, batch=total + 60, epochs=2
        )
    for name in one.p:
        np.testing.assert_allclose(one.p[name], many.p[name], atol=2e-4)


def test_metrics_have_exactly_the_columns(tmp_path):
    result, _ = job(tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    for n, line in enumerate(lines, 1):
        row = json.loads(line)
        assert tuple(row) == tuple(c for c in COLUMNS if not c.startswith("expert_")) and row["step"] == n
        assert row["rss_bytes"] > 1 << 20 and row["tokens_per_s"] > 0
        assert (row["val_loss"] is not None) == (n % 3 == 0 or n == len(lines))
    assert len(lines) == result.total_steps and row["epoch"] == SETTINGS["epochs"]


def test_evaluation_at_epoch_ends_by_default(tmp_path):
    result, trainer = job(tmp_path / "run", val_every=0)
    evaluated = [row["step"] for row in result.metrics if row["val_loss"] is not None]
    assert evaluated == list(np.cumsum(trainer.steps.epoch_steps))


def test_validation_loss_is_a_mean_over_tokens_and_is_never_trained_on(tmp_path):
    trainee, val = FakeTrainee(), chain_dataset(12, seed=1)
    result, trainer = job(tmp_path / "run", trainee=trainee, val=val)
    batch = make_batch(val, range(len(val)))
    mean = trainee.evaluate(batch) / batch.loss_tokens
    assert result.metrics[-1]["val_loss"] == pytest.approx(mean, rel=1e-5)
    assert sum(s[3] for s in trainee.seen) == SETTINGS["epochs"] * trainer.train.loss_tokens


class Overfitting(FakeTrainee):
    """Validation gets better twice, then worse for ever."""

    values = iter(())

    def evaluate(self, batch):
        return next(self.values) * batch.loss_tokens


def test_the_best_on_validation_is_what_comes_out(tmp_path):
    trainee = Overfitting()
    trainee.values = iter([3.0, 2.0] + [2.5] * 99)
    at_best = {}

    def remember(row):
        if row["step"] == 4:
            at_best.update({k: v.copy() for k, v in trainee.p.items()})

    val = chain_dataset(2, seed=1, longest=12)  # one micro-batch
    result, _ = job(
        tmp_path / "run",
        trainee=trainee,
        val=val,
        val_every=2,
        prepare=lambda trainer: setattr(trainer, "calls", Calls(progress=remember)),
    )
    assert result.best == {"step": 4, "val_loss": 2.0}
    for adapter in (result.adapter, FakeAdapter.load(tmp_path / "run" / "out.gguf")):
        np.testing.assert_array_equal(adapter.tensors["bigram"][0], at_best["a"])
    assert not np.array_equal(trainee.p["a"], at_best["a"])


def test_early_stop_and_its_resume(tmp_path):
    trainee = Overfitting()
    trainee.values = iter([3.0, 2.0, 2.5, 2.6, 2.7])
    val = chain_dataset(2, seed=1, longest=12)
    result, _ = job(tmp_path / "run", trainee=trainee, val=val, val_every=1, early_stop=3)
    assert (result.stopped, result.step) == ("early", 5)
    again = Overfitting()
    result, _ = job(tmp_path / "run", trainee=again, val=val, val_every=1, early_stop=3, resume_from="auto")
    assert (result.stopped, result.step) == ("early", 5) and not again.seen


@pytest.mark.parametrize("place", ["loss", "norm"])
def test_a_nan_stops_at_its_step_and_keeps_what_was_good(tmp_path, place):
    trainee = FakeTrainee(nan_at=6 if place == "loss" else None)
    if place == "norm":
        update = trainee.update
        trainee.update = lambda lr, step, **kw: float("nan") if step == 6 else update(lr, step, **kw)
    with pytest.raises(UserError, match="Step 6") as error:
        job(tmp_path / "run", trainee=trainee, checkpoint_save_steps=0)
    assert all(word in str(error.value) for word in ("--learning-rate", "line", "--lora"))
    found = ckpt.newest(tmp_path / "run" / "checkpoints", print)
    assert found.step == 5 and all(np.isfinite(a).all() for a in found.tensors().values())
    assert [row["step"] for row in read(tmp_path / "run" / "metrics.jsonl")] == [1, 2, 3, 4, 5]
    assert np.isfinite(FakeAdapter.load(tmp_path / "run" / "adapter.gguf").tensors["bigram"][0]).all()


@pytest.mark.filterwarnings("ignore:invalid value")
def test_parameters_that_are_not_finite_never_reach_a_checkpoint(tmp_path):
    trainee = FakeTrainee()
    update = trainee.update

    def overflow(lr, step, **kw):
        norm = update(lr, step, **kw)
        if step == 4:
            trainee.p["b"][0, 0] = np.inf
        return norm

    trainee.update = overflow
    with pytest.raises(UserError, match="Step 5"):
        job(tmp_path / "run", trainee=trainee, checkpoint_save_steps=1, val=False)
    assert ckpt.newest(tmp_path / "run" / "checkpoints", print).step == 3


def test_a_last_update_that_overflows_writes_no_adapter(tmp_path):
    trainee = FakeTrainee()
    update = trainee.update

    def overflow(lr, step, **kw):
        norm = update(lr, step, **kw)
        if step == 4:
            trainee.p["b"][0, 0] = np.nan
        return norm

    trainee.update = overflow
    with pytest.raises(UserError, match="no longer finite"):
        job(tmp_path / "run", trainee=trainee, max_steps=4, val=False)
    assert not (tmp_path / "run" / "adapter.gguf").exists()
    assert ckpt.newest(tmp_path / "run" / "checkpoints", print).step == 2


def test_checkpoints_kept(tmp_path):
    job(tmp_path / "run", checkpoint_save_steps=1, keep_checkpoints=3)
    found = [ckpt.load(p).step for p in ckpt.listing(tmp_path / "run" / "checkpoints")]
    total = Steps(chain_dataset(), TrainSettings(**SETTINGS)).total
    assert found == [total, total - 1, total - 2]


def test_all_checkpoints_are_kept_where_a_folder_is_named_for_them(tmp_path):
    total = Steps(chain_dataset(), TrainSettings(**SETTINGS)).total
    for name, more, left in (("all", {}, total), ("two", {"keep_checkpoints": 2}, 2)):
        folder = tmp_path / name
        job(tmp_path / f"run-{name}", checkpoint_save_steps=1, checkpoint_save_dir=str(folder), **more)
        assert [ckpt.load(p).step for p in ckpt.listing(folder)] == list(range(total, total - left, -1))
    with pytest.raises(UserError, match=f"has checkpoint_step_{total - 1:08d}, checkpoint_step_{total:08d}"):
        job(tmp_path / "again", resume_from=str(tmp_path / "two" / "checkpoint_step_00000001"))


def test_metrics_are_cut_back_and_torn_lines_removed(tmp_path):
    path = tmp_path / "m.jsonl"
    row = dict.fromkeys(COLUMNS, 1.0)
    with_steps = [dict(row, step=n) for n in (1, 2, 3)]
    path.write_text("".join(json.dumps(r) + "\n" for r in with_steps) + '{"step": 4, "lo')
    file = MetricsFile(path, 2)
    file.append(dict(row, step=3, loss=math.nan))
    file.close()
    rows = read(path)
    assert [r["step"] for r in rows] == [1, 2, 3] and rows[2]["loss"] is None
    MetricsFile(path, 0).close()
    assert read(path) == [] and path.stat().st_size == 0


def test_plot_and_log(tmp_path):
    import xml.etree.ElementTree as xml

    job(tmp_path / "run")
    tree = xml.parse(tmp_path / "run" / "loss.svg")
    lines = [e for e in tree.iter() if e.tag.endswith("polyline")]
    assert len(lines) == 3 and all("nan" not in e.attrib["points"] for e in lines)
    assert (tmp_path / "run" / "train.log").exists()


@pytest.mark.parametrize("values", [[1.0], [2.0, 2.0], [0.0, 0.0], [5, 1e-9, 3], list(range(5000)), [-1.0, 1e30]])
def test_any_losses_can_be_plotted(values):
    import xml.etree.ElementTree as xml

    from anytune.train.plot import svg

    tree = xml.fromstring(svg([(n + 1, v) for n, v in enumerate(values)], [(1, values[0])], "a <b> & c"))
    for element in tree.iter():
        for pair in element.attrib.get("points", "").split():
            x, y = map(float, pair.split(","))
            assert 0 <= x <= 860 and 0 <= y <= 460


def test_one_run_never_overwrites_another(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, _ = job(None, max_steps=1)
    second, _ = job(None, max_steps=1)
    assert first.run_dir != second.run_dir and second.run_dir.name == first.run_dir.name + "-2"
    with pytest.raises(UserError, match="already contains a run"):
        job(first.run_dir, max_steps=1)
    job(None, max_steps=1, checkpoint_save_dir="points")
    with pytest.raises(UserError, match="--checkpoint-save-dir"):
        job(None, max_steps=1, checkpoint_save_dir="points")


@pytest.mark.parametrize("named", [True, False])
def test_a_separate_checkpoint_folder_resumes_into_its_run(tmp_path, monkeypatch, named):
    monkeypatch.chdir(tmp_path)
    calm, _ = job(None)
    trainee = FakeTrainee()
    count = 0

    def stop():
        nonlocal count
        count += 1
        if count == 14:
            raise MemoryError

    trainee.on_micro = stop
    with pytest.raises(MemoryError):
        job(None, trainee=trainee, checkpoint_save_dir="points")
    step = ckpt.listing(tmp_path / "points")[0]
    assert step.name.startswith("checkpoint_step_0000")
    result, _ = job(None, resume_from=str(step) if named else "auto", checkpoint_save_dir="points")
    assert len(list((tmp_path / "runs").iterdir())) == 2
    assert (result.run_dir / "out.gguf").read_bytes() == (calm.run_dir / "out.gguf").read_bytes()
    assert [row["step"] for row in result.metrics] == list(range(1, result.total_steps + 1))


def test_tensorboard_if_named(tmp_path):
    need("tensorboard")
    job(tmp_path / "run", max_steps=2, report_to="tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert [e.step for e in events.Scalars("train/loss")] == [1, 2]


def test_a_missing_logger_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="pip install wandb"):
        job(tmp_path / "run", report_to="wandb")


def test_a_logger_that_fails_is_left_out(tmp_path, monkeypatch):
    from anytune.train import sinks

    calls, said = [], []

    def opener(*_):
        def sink(row):
            calls.append(row)
            raise ConnectionError("no network")

        return sink

    monkeypatch.setitem(sinks.OPENERS, "wandb", opener)
    result, _ = job(tmp_path / "run", report_to="wandb", say=said.append)
    assert result.stopped == "finished" and len(calls) == 1 and any("no network" in text for text in said)


def test_validation_data_without_loss_is_refused(tmp_path):
    from anytune.text.dataset import Builder

    empty = Builder()
    empty.add([1, 2, 3], [False] * 3, 1)
    with pytest.raises(UserError, match="validation"):
        job(tmp_path / "run", val=empty.finish())


def test_nothing_heavy_is_imported():
    code = (
        "import sys, anytune.train.finetune, anytune.train.trainer; "
        "print([m for m in ('numba', 'torch', 'matplotlib', 'rich', 'tqdm', 'jinja2', 'tokenizers', "
        "'safetensors', 'tensorboard') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
