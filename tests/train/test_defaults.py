"""What is chosen where batch, epochs and rate are left open; run folders as they are documented, listed and cleaned."""

import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import anytune
from anytune.errors import UserError
from anytune.train import defaults, folders, metrics
from anytune.train.run_folder import SCHEMA
from anytune.train.settings import FIELDS, FULL_RATE, TrainSettings
from tests.support import tiny

PAGE = (Path(__file__).parents[2] / "docs" / "run-folder.md").read_text("utf-8")


@settings(max_examples=200, deadline=None)
@given(
    st.sets(st.sampled_from(defaults.OPEN)),
    st.integers(2, 10**8),
    st.integers(2, 4096),
    st.integers(10**5, 10**11),
    st.booleans(),
    st.sampled_from([None, 1, 3]),
)
def test_what_is_chosen(unset, tokens, longest, parameters, full, epochs):
    given_ = TrainSettings(epochs=None if "epochs" in unset else epochs, batch=4096, lr=1e-5)
    made = defaults.choose(given_, unset, tokens, longest, parameters, full)
    for name in FIELDS:
        if name not in unset:
            assert getattr(made, name) == getattr(given_, name)
    least = max(given_.ubatch, longest)
    steps = defaults.steps_of(tokens, made.batch, least) * made.passes
    if "lr" in unset:
        assert made.lr == FULL_RATE if full else made.lr in (1e-3, 5e-4, 2e-4)
    if "epochs" in unset:
        assert steps >= defaults.STEPS or made.epochs == defaults.PASSES
        assert made.epochs == 2 or (made.epochs - 1) * defaults.steps_of(tokens, made.batch, least) < defaults.STEPS
    if "batch" in unset and made.batch < 4096:
        assert made.batch >= min(least, 4096)
        bigger = defaults.steps_of(tokens, min(4096, made.batch * 2), least) * (given_.epochs or 2)
        assert bigger < defaults.STEPS or made.batch == least
    assert defaults.choose(given_, (), tokens, longest, parameters, full) == given_


def test_large_data_keeps_what_was_the_default():
    made = defaults.choose(TrainSettings(), defaults.OPEN, 10**6, 512, 7 * 10**9, False)
    assert (made.batch, made.epochs, made.lr) == (2048, 2, 2e-4)
    few = defaults.choose(TrainSettings(), defaults.OPEN, 2600, 200, 135 * 10**6, False)
    assert (few.batch, few.epochs, few.lr) == (512, 9, 1e-3)
    assert defaults.choose(TrainSettings(max_steps=5), defaults.OPEN, 2600, 200, 10**8, False).epochs is None
    assert "3 optimizer steps" in defaults.warning(3, few) and not defaults.warning(50, few)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    tiny.write(folder / "model.gguf", "llama")
    rows = [
        {"messages": [{"role": "user", "content": f"is it {i}"}, {"role": "assistant", "content": f"so it is {i}"}]}
        for i in range(8)
    ]
    (folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    old = os.getcwd()
    os.chdir(folder)
    run = anytune.finetune(
        "model.gguf", "chats.jsonl", val_split=0.2, context=64, ubatch=64, device="numpy", run_name="a", quiet=True
    )
    yield folder, run
    os.chdir(old)


def test_small_data_makes_enough_steps_and_says_what_was_chosen(here):
    _, run = here
    assert run.step >= defaults.STEPS and run.metrics[-1]["loss"] < 0.8 * run.metrics[0]["loss"]
    log = (run.run_dir / "train.log").read_text("utf-8")
    assert re.search(r"Defaults: batch 64, epochs \d+, learning_rate 0.001", log), log


def test_a_run_goes_on_with_what_was_chosen_then_and_before(here):
    folder, _ = here
    options = {"context": 64, "ubatch": 64, "device": "numpy", "quiet": True}
    first = anytune.finetune("model.gguf", "chats.jsonl", callbacks={"on_step": lambda row: row["step"] < 3}, **options)
    again = anytune.finetune("model.gguf", "chats.jsonl", resume_from="auto", **options)
    assert (
        again.run_dir.resolve() == first.run_dir.resolve()
        and again.stopped == "finished"
        and again.step >= defaults.STEPS
    )
    old = dict(batch=2048, epochs=2, learning_rate=2e-4)  # what versions before took
    before = anytune.finetune("model.gguf", "chats.jsonl", max_steps=None, run_dir="old", **old, **options)
    after = anytune.finetune("model.gguf", "chats.jsonl", resume_from="old", **options)
    assert after.run_dir.resolve() == before.run_dir.resolve() and after.step == before.step


def table(title: str) -> dict[str, str]:
    """key -> type, of the table under a heading."""
    part = PAGE.split(f"## {title}")[1].split("\n## ")[0]
    return dict(re.findall(r"^\| `(\w+)` \| ([^|]+?) \|", part, re.MULTILINE))


KINDS = {
    "integer": int,
    "number": (int, float),
    "string": str,
    "object": dict,
    "list of strings": list,
    "null": type(None),
}


def fits(value, kind: str) -> bool:
    return any(isinstance(value, KINDS[part]) and not isinstance(value, bool) for part in kind.split(" or "))


def test_a_run_writes_what_the_page_says(here):
    _, run = here
    assert f"schema **{SCHEMA}**" in PAGE
    rows, settings_ = table("metrics.jsonl"), table("settings.json")
    assert set(rows) == set(metrics.COLUMNS)
    for row in run.metrics:
        assert set(row) == {key for key in rows if not key.startswith("expert_")}, row  # those are of mixtures
        assert all(fits(value, rows[key]) for key, value in row.items()), row
    written = json.loads((run.run_dir / "settings.json").read_text("utf-8"))
    assert set(written) <= set(settings_) and written["schema"] == SCHEMA, set(written) - set(settings_)
    assert not set(settings_) - set(written)
    assert all(fits(value, settings_[key]) for key, value in written.items()), written
    files = set(re.findall(r"^  (\S+)", PAGE.split("```")[1], re.MULTILINE))
    there = {path.name + "/" * path.is_dir() for path in run.run_dir.iterdir()}
    assert there <= files | {"model.gguf"}, there - files
    (last, *_) = (run.run_dir / "checkpoints").glob("checkpoint_step_*")
    for path in last.iterdir():
        assert f"`{path.name}`" in PAGE
    facts = json.loads((last / "checkpoint.json").read_text("utf-8"))
    assert all(f"`{key}`" in PAGE for key in facts), facts.keys()


def test_runs_are_listed_and_cleaned(here):
    _, run = here
    found = {each.path.name: each for each in folders.folders(Path("runs"))}
    mine = found[run.run_dir.name]
    assert mine.state == "finished" and mine.step == run.step and mine.best == pytest.approx(run.best["val_loss"])
    assert 0 < mine.checkpoint_bytes < mine.bytes
    with pytest.raises(UserError, match=f"Did you mean {run.run_dir.name}"):
        folders.folders(Path("runs"), (run.run_dir.name + "x",))
    kept = {name: (run.run_dir / name).read_bytes() for name in ("adapter.gguf", "metrics.jsonl", "settings.json")}
    freed = folders.clean(mine)
    assert freed == mine.bytes - folders.taken(run.run_dir) and not (run.run_dir / "checkpoints").exists()
    assert all((run.run_dir / name).read_bytes() == data for name, data in kept.items())
    assert folders.needless(folders.look(run.run_dir)) == []
    stopped = anytune.finetune(
        "model.gguf", "chats.jsonl", ubatch=64, context=64, callbacks={"on_step": lambda _: False}, quiet=True
    )
    assert folders.needless(folders.look(stopped.run_dir)) == []
    assert folders.needless(folders.look(stopped.run_dir), stopped=True)
