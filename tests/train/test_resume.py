"""Killed at any moment and resumed, a run ends in the bytes of an uninterrupted one."""

import os
import random
import signal
import sys

import pytest

from anytune.errors import UserError
from anytune.train import checkpoint as ckpt
from tests.train.fake import FakeTrainee, chain_dataset
from tests.train.jobs import job, life
from tests.train.kill_harness import deterministic_rows, same_end, survive

posix = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """The uninterrupted run's folder."""
    path = tmp_path_factory.mktemp("calm") / "run"
    job(path)
    return path


def test_two_calm_runs_end_alike_and_a_different_one_does_not(calm, tmp_path):
    job(tmp_path / "same")
    assert same_end(calm, tmp_path / "same", "out.gguf") is None
    job(tmp_path / "other", seed=43)
    assert same_end(calm, tmp_path / "other", "out.gguf") is not None


@posix
@pytest.mark.parametrize("seed", range(4))
def test_killed_at_random_operations(calm, tmp_path, seed):
    """At least ten kills a seed, at disk operations of saves and at micro-batches alike."""
    rng, kills = random.Random(seed), 0
    for trial in range(100):
        run = tmp_path / f"run{trial}"

        def body(event):
            trainee = FakeTrainee()
            trainee.on_micro = event
            job(run, trainee=trainee, resume_from="auto")

        while life(rng.randint(1, 250), body):
            kills += 1
        assert same_end(calm, run, "out.gguf") is None
        if kills >= 10:
            break
    assert kills >= 10
    leftovers = [p.name for p in (run / "checkpoints").iterdir() if ".tmp" in p.name or ".old" in p.name]
    assert not leftovers


@posix
def test_killed_at_every_operation_of_one_save(calm, tmp_path):
    """The second save and its pruning, operation by operation."""

    def events_of_a_life():
        count = 0

        def body(event):
            nonlocal count
            trainee = FakeTrainee()

            def counted(name=""):
                nonlocal count
                count += 1

            from tests.train.jobs import operations

            with operations(counted):
                job(tmp_path / "count", trainee=trainee, max_steps=5)

        body(None)
        return count

    total = events_of_a_life()
    killed = 0
    for moment in range(max(1, total - 70), total, 4):
        run = tmp_path / f"run{moment}"

        def body(event):
            job(run, resume_from="auto", max_steps=5)

        killed += life(moment, body)
        job(run, resume_from="auto", max_steps=5)
        assert same_end(tmp_path / "count", run, "out.gguf") is None
    assert killed >= 10


@posix
def test_killed_from_outside(tmp_path):
    """The harness itself, in wall-clock time, as it is used on real models."""
    program = (
        "import sys, time; from pathlib import Path; from tests.train.jobs import job, FakeTrainee\n"
        "t = FakeTrainee(); t.on_micro = lambda: time.sleep(0.004)\n"
        "job(Path(sys.argv[1]), trainee=t, resume_from='auto')"
    )
    command = [sys.executable, "-c", program, "{run}"]
    survive(command, tmp_path / "calm", 0, lambda: None)
    rng = random.Random(5)
    assert survive(command, tmp_path / "killed", 3, lambda: rng.uniform(0.25, 0.5)) >= 1
    assert same_end(tmp_path / "calm", tmp_path / "killed", "out.gguf") is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGINT)])
@pytest.mark.parametrize("at", [1, 5, 11])
def test_an_orderly_stop_saves_and_continues_exactly(calm, tmp_path, number, at):
    trainee, count = FakeTrainee(), 0
    before = signal.signal(number, signal.default_int_handler)  # under nohup SIGHUP would be ignored, and stay so

    def stop_at():
        nonlocal count
        count += 1
        if count == at:
            os.kill(os.getpid(), number)

    trainee.on_micro = stop_at
    try:
        result, trainer = job(tmp_path / "run", trainee=trainee, checkpoint_save_steps=0)
    finally:
        signal.signal(number, before)
    assert result.stopped == "interrupted" and count == at
    assert (result.path is None) == (result.step == 0)
    result, _ = job(tmp_path / "run", resume_from="auto", checkpoint_save_steps=0)
    assert result.stopped == "finished"
    assert same_end(calm, tmp_path / "run", "out.gguf") is None


def test_stopped_during_an_evaluation_continues_exactly(calm, tmp_path):
    trainee = FakeTrainee()
    real = trainee.evaluate

    def evaluate(batch):
        if not trainee.stopped:
            trainee.stopped = True
            os.kill(os.getpid(), signal.SIGINT)
        return real(batch)

    trainee.stopped, trainee.evaluate = False, evaluate
    result, trainer = job(tmp_path / "run", trainee=trainee)
    assert result.stopped == "interrupted" and result.step == 3 and trainer.pending
    assert [row[0] for row in deterministic_rows(tmp_path / "run" / "metrics.jsonl")] == [1, 2]
    job(tmp_path / "run", resume_from="auto")
    assert same_end(calm, tmp_path / "run", "out.gguf") is None


def test_ignored_signals_stay_ignored(tmp_path):
    old = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        trainee = FakeTrainee()
        trainee.on_micro = lambda: os.kill(os.getpid(), signal.SIGTERM)
        assert job(tmp_path / "run", trainee=trainee)[0].stopped == "finished"
    finally:
        signal.signal(signal.SIGTERM, old)


@pytest.mark.parametrize("row", [{}, {"step": 3}, {"loss": "x"}, {"val_loss": 1.0}, {"step": 4}, {"tokens": True}])
def test_a_hostile_pending_row_is_refused(tmp_path, row):
    trainee = FakeTrainee()
    real = trainee.evaluate

    def evaluate(batch):
        os.kill(os.getpid(), signal.SIGINT)
        trainee.evaluate = real
        return real(batch)

    trainee.evaluate = evaluate
    result, trainer = job(tmp_path / "run", trainee=trainee)
    found = ckpt.load(result.checkpoint)
    good = found.info["pending"]
    bad = dict(good, **row) if row and row != {"step": 3} else row
    trainer.resume = ckpt.Checkpoint(found.path, found.step, dict(found.info, pending=bad))
    with pytest.raises(UserError, match="malformed"):
        trainer.run()


def test_a_second_interrupt_leaves_at_once_and_harms_nothing(calm, tmp_path):
    trainee, count = FakeTrainee(), 0

    def twice():
        nonlocal count
        count += 1
        if count == 12:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            count += 100

    trainee.on_micro = twice
    with pytest.raises(KeyboardInterrupt):
        job(tmp_path / "run", trainee=trainee)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    job(tmp_path / "run", resume_from="auto")
    assert same_end(calm, tmp_path / "run", "out.gguf") is None


def test_a_finished_run_resumed_does_nothing_more(calm, tmp_path):
    job(tmp_path / "run")
    before = (tmp_path / "run" / "out.gguf").read_bytes()
    trainee = FakeTrainee()
    result, _ = job(tmp_path / "run", trainee=trainee, resume_from="auto")
    assert result.stopped == "finished" and not trainee.seen
    assert (tmp_path / "run" / "out.gguf").read_bytes() == before


def test_auto_falls_back_past_a_torn_checkpoint(calm, tmp_path):
    said = []
    job(tmp_path / "run", max_steps=None)
    newest = ckpt.listing(tmp_path / "run" / "checkpoints")[0]
    state = newest / "state.safetensors"
    data = bytearray(state.read_bytes())
    data[len(data) // 2] ^= 1
    state.write_bytes(data)
    with pytest.raises(UserError, match="state.safetensors"):
        job(tmp_path / "run2", resume_from=str(newest))
    result, _ = job(tmp_path / "run", resume_from="auto", say=said.append)
    assert any("Skipping" in text for text in said)
    assert result.stopped == "finished"
    assert same_end(calm, tmp_path / "run", "out.gguf") is None
    assert ckpt.load(newest).step == result.total_steps  # replaced by a good one


@pytest.mark.parametrize(
    "change, named",
    [
        ({"base": "e" * 64}, "base model"),
        ({"lr": 0.04}, "--learning-rate"),
        ({"seed": 7}, "--seed"),
        ({"train": chain_dataset(seed=9)}, "training data"),
        ({"val": chain_dataset(5, seed=9)}, "validation data"),
        ({"trainee": FakeTrainee(rank=5)}, "--lora-rank"),
        ({"epochs": 4}, "--num-epochs"),
    ],
)
def test_refuses_another_base_data_or_setting_and_names_it(tmp_path, change, named):
    job(tmp_path / "run", max_steps=4)
    where = str(tmp_path / "run")
    with pytest.raises(UserError, match=named):
        job(None, resume_from=where, max_steps=4, **change)
    with pytest.raises(UserError, match=named):
        job(tmp_path / "run", resume_from="auto", max_steps=4, **change)


def test_settings_that_change_no_byte_may_differ(calm, tmp_path):
    job(tmp_path / "run", prepare=lambda trainer: setattr(trainer.interrupts, "stop", False))
    result, _ = job(tmp_path / "run", resume_from="auto", keep_checkpoints=5, checkpoint_save_steps=1)
    assert result.stopped == "finished"


def test_auto_starts_anew_without_a_checkpoint_and_named_does_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result, _ = job(None, resume_from="auto", max_steps=2)
    assert result.stopped == "finished" and result.run_dir.parent.name == "runs"
    again, _ = job(None, resume_from="auto", max_steps=2)
    assert again.run_dir.resolve() == result.run_dir.resolve()
    with pytest.raises(UserError, match="no such folder"):
        job(None, resume_from="nowhere")
