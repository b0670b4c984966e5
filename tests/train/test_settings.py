"""Settings name their flag when they are wrong; schedule and plan count in optimizer steps."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from anytune.errors import UserError
from anytune.text.dataset import Builder
from anytune.text.packing import make_batch
from anytune.train.steps import Steps
from anytune.train.schedule import Schedule
from anytune.train.settings import DEFAULTS, EXACT, FLAGS, LIMITS, TrainSettings
from tests.support.require import need
from tests.train.fake import chain_dataset

BAD = {
    "context": [0, 1, -5, 1.5, "512", True],
    "ubatch": [0],
    "batch": [0],
    "epochs": [0, 1.5],
    "max_steps": [0],
    "lr": [0, -1, math.nan, math.inf, "x", True],
    "lr_min": [-1e-9, math.nan],
    "scheduler": ["cos", 3],
    "warmup_ratio": [1, -0.1, math.nan],
    "warmup_steps": [-1],
    "weight_decay": [-1],
    "beta1": [1],
    "beta2": [1],
    "eps": [0],
    "max_grad_norm": [-1, math.nan],
    "seed": [-1, 2**63, 1.0],
    "val_every": [-1],
    "early_stop": [-1],
    "checkpoint_save_steps": [-1],
    "keep_checkpoints": [0],
    "run_name": ["a/b", "", "..", ".x", "a\0b"],
    "resume_from": [""],
    "run_dir": [""],
    "checkpoint_save_dir": [""],
}


@pytest.mark.parametrize("name, value", [(n, v) for n, values in BAD.items() for v in values])
def test_a_bad_value_is_refused_by_its_flag(name, value):
    with pytest.raises(UserError) as error:
        TrainSettings(**{name: value})
    assert FLAGS[name] in str(error.value)


def test_tables_are_complete():
    fields = {f.name for f in dataclasses.fields(TrainSettings)}
    assert set(LIMITS) == fields == set(FLAGS) == set(DEFAULTS) and set(EXACT) < fields
    assert len(set(FLAGS.values())) == len(FLAGS)
    assert set(BAD) | {"report_to"} == fields
    TrainSettings()
    with pytest.raises(UserError, match="--lr-min"):
        TrainSettings(lr_min=1e-3)
    with pytest.raises(UserError, match="--report-to"):
        TrainSettings(report_to="tensorbored")
    assert TrainSettings(report_to="none").sinks == []
    assert TrainSettings(report_to="wandb, tensorboard").sinks == ["wandb", "tensorboard"]


def test_sizes_are_fitted_and_said():
    settings, notes = TrainSettings(context=2048, ubatch=128, batch=256).fitted(700)
    assert (settings.ubatch, settings.batch) == (700, 700) and len(notes) == 2
    settings, notes = TrainSettings(context=512, ubatch=128, batch=128).fitted(100)
    assert (settings.ubatch, settings.batch, notes) == (128, 128, [])


@hypothesis_settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(["constant", "linear", "cosine"]),
    st.integers(1, 300),
    st.floats(0, 0.99),
    st.one_of(st.none(), st.integers(0, 400)),
    st.floats(0, 1e-4),
)
def test_schedule(name, total, ratio, steps, floor):
    settings = TrainSettings(scheduler=name, warmup_ratio=ratio, warmup_steps=steps, lr_min=floor)
    schedule = Schedule.of(settings, total)
    rates = [schedule.lr(s) for s in range(1, total + 1)]
    w = schedule.warmup
    assert all(floor <= r <= settings.lr and r > 0 for r in rates)
    assert all(b >= a for a, b in zip(rates[:w], rates[1:w], strict=False))
    assert all(b <= a for a, b in zip(rates[w:], rates[w + 1 :], strict=False))
    assert max(rates) == pytest.approx(settings.lr)
    if name == "constant":
        assert rates[w:] == [settings.lr] * (total - w)
    elif total - w > 50:
        assert rates[-1] < floor + 0.05 * (settings.lr - floor) + 1e-12


def test_schedule_agrees_with_transformers():
    """After warm-up the shapes are the common ones (transformers counts steps from 0 and warms up from 0)."""
    torch = need("torch")
    get = need("transformers").get_cosine_schedule_with_warmup
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2e-4)
    theirs, rates = get(optimizer, 10, 100), []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    schedule = Schedule.of(TrainSettings(warmup_steps=10), 100)
    np.testing.assert_allclose([schedule.lr(s) for s in range(11, 101)], rates[10:], rtol=1e-9)


@hypothesis_settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(30, 90), st.integers(1, 5), st.integers(1, 4), st.integers(0, 3))
def test_plan_sees_every_example_once_an_epoch(examples, ubatch, per_step, epochs, seed):
    data = chain_dataset(examples, seed)
    plan = Steps(data, TrainSettings(ubatch=ubatch, batch=ubatch * per_step, epochs=epochs, seed=seed))
    steps = list(plan.after(0))
    assert [p.step for p, _ in steps] == list(range(1, plan.total + 1))
    for epoch in range(epochs):
        mine = [bins for p, bins in steps if p.epoch == epoch]
        assert sorted(i for bins in mine for b in bins for i in b) == list(range(examples))
        sizes = [len(bins) for bins in mine]
        assert max(sizes) <= per_step and max(sizes) - min(sizes) <= 1
        assert len(sizes) == -(-sum(sizes) // per_step)
        assert all(sum(data.lengths[i] for i in b) <= ubatch for bins in mine for b in bins)
    assert [p.ends_epoch for p, _ in steps].count(True) == epochs
    assert steps[-1][0].epochs_done == epochs
    for cut in range(plan.total + 1):  # resuming anywhere sees exactly the rest
        assert list(plan.after(cut)) == steps[cut:]
        where = plan.position(cut)
        assert sum(plan.epoch_steps[: where["epoch"]]) + where["epoch_step"] == cut


def test_epochs_differ_in_order_and_seeds_too():
    data = chain_dataset(50)
    plan = Steps(data, TrainSettings(ubatch=40, batch=80, epochs=2))
    assert plan.steps_of(0) != plan.steps_of(1)
    assert plan.steps_of(0) != Steps(data, TrainSettings(ubatch=40, batch=80, seed=1)).steps_of(0)


@pytest.mark.parametrize("epochs, steps, total", [(None, 50, 50), (1, 50, None), (None, 1, 1), (3, 2, 2)])
def test_max_steps(epochs, steps, total):
    data = chain_dataset(20)
    settings = TrainSettings(ubatch=64, batch=64, epochs=epochs, max_steps=steps)
    plan = Steps(data, settings)
    assert plan.total == (total or min(plan.epoch_steps[0], steps)) == len(list(plan.after(0)))


def test_examples_without_loss_cost_nothing_and_none_at_all_is_an_error():
    builder = Builder()
    for line in range(8):
        builder.add([1] * 10, [line % 2 == 0] * 10, line + 1)
    data = builder.finish(["d"])
    plan = Steps(data, TrainSettings(ubatch=10, batch=10, epochs=1))
    assert plan.total == 4
    assert all(make_batch(data, b).loss_tokens for _, bins in plan.after(0) for b in bins)
    empty = Builder()
    empty.add([1, 2, 3], [False] * 3, 1)
    with pytest.raises(UserError, match="no tokens with loss"):
        Steps(empty.finish(), TrainSettings())
    with pytest.raises(UserError, match="no tokens with loss"):
        Steps(Builder().finish(), TrainSettings())
