"""A template that prints the date: a run that goes on tomorrow sees the tokens of the day on which it began."""

import datetime
import json
import shutil
import types

import pytest

from anytune.errors import UserError
from anytune.gguf import GGUF
from anytune.text import ChatTemplate
from anytune.train import checkpoint as ckpt
from anytune.train.finetune import train
from anytune.train.run_folder import read_json
from tests.support import tiny

TEMPLATE = (
    "{{ strftime_now('%Y-%m-%d') }}{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content }}<|im_end|>"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
)
ROWS = [
    [("user", "hello"), ("assistant", "yes")],
    [("user", "go"), ("assistant", "no")],
    [("user", "a b"), ("assistant", "c d")],
]


@pytest.fixture
def day(monkeypatch):
    """day(n): it is the n-th of a month for templates that are made from now on."""

    def set_to(n):
        clock = types.SimpleNamespace(now=lambda: datetime.datetime(2026, 3, n, 23, 59))
        monkeypatch.setattr("anytune.text.chat.datetime", types.SimpleNamespace(datetime=clock))

    return set_to


@pytest.fixture
def job(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = tiny.write(tmp_path / "tiny.gguf", "llama")
    (tmp_path / "t.jinja").write_text(TEMPLATE)
    (tmp_path / "chats.jsonl").write_text(
        "".join(json.dumps({"messages": [{"role": r, "content": c} for r, c in row]}) + "\n" for row in ROWS)
    )

    def run(**options):
        options = {
            "chat_template": "t.jinja",
            "context": 96,
            "ubatch": 96,
            "batch": 96,
            "max_steps": 4,
            "epochs": 9,
            "checkpoint_save_steps": 1,
            "keep_checkpoints": 9,
            "device": "numpy",
        } | options
        return train(str(model), "chats.jsonl", threads=1, quiet=True, **options)

    return run


def cut(run, step):
    """As if it had been killed after that step."""
    for path in ckpt.listing(run.run_dir / "checkpoints"):
        if int(path.name.rpartition("_")[2]) > step:
            shutil.rmtree(path)


@pytest.mark.parametrize("how", ["auto", "run", "checkpoint", "folder"])
def test_a_run_goes_on_after_midnight_in_the_same_bytes(job, day, how):
    day(1)
    folder = {"run_dir": "here"} if how == "folder" else {}
    whole = job(**folder)
    before = whole.path.read_bytes()
    cut(whole, 2)
    day(2)
    places = {"run": whole.run_dir, "checkpoint": whole.run_dir / "checkpoints" / "checkpoint_step_00000002"}
    again = job(resume_from=str(places.get(how, "auto")), **folder)
    assert again.run_dir.resolve() == whole.run_dir.resolve() and again.path.read_bytes() == before
    assert read_json(whole.run_dir / "settings.json")["identity"]["date"] == "2026-03-01T23:59:00"


def test_each_of_several_runs_has_its_own_date(job, day):
    runs = []
    for n in (1, 2, 3):
        day(n)
        runs.append(job(lr=n * 1e-3, max_steps=2))
    assert len({run.run_dir for run in runs}) == 3
    day(9)
    for n, run in enumerate(runs, 1):
        cut(run, 1)
        assert job(lr=n * 1e-3, max_steps=2, resume_from="auto").run_dir.resolve() == run.run_dir.resolve()
    new = job(lr=7e-3, max_steps=2, resume_from="auto")
    assert new.run_dir not in [run.run_dir for run in runs]
    dates = {read_json(file)["identity"]["date"][:10] for file in runs[0].run_dir.parent.glob("*/settings.json")}
    assert dates == {"2026-03-01", "2026-03-02", "2026-03-03", "2026-03-09"}


def test_other_data_is_still_other_data(job, day, tmp_path):
    day(1)
    run = job(max_steps=2)
    day(2)
    (tmp_path / "chats.jsonl").write_text(json.dumps({"text": "x y z"}) + "\n")
    with pytest.raises(UserError, match="training data or its tokenization"):
        job(max_steps=2, resume_from=str(run.run_dir))


def test_a_run_without_a_date_has_none(job, tmp_path):
    (tmp_path / "t.jinja").write_text(TEMPLATE.replace("{{ strftime_now('%Y-%m-%d') }}", ""))
    run = job(max_steps=2)
    assert "date" not in read_json(run.run_dir / "settings.json")["identity"]
    assert job(max_steps=2, resume_from="auto").run_dir.resolve() == run.run_dir.resolve()


def test_a_template_on_another_day_is_the_same_template(tmp_path):
    with GGUF.open(tiny.write(tmp_path / "tiny.gguf", "llama")) as gguf:
        own = ChatTemplate.for_model(gguf, None)
    other = own.at(datetime.datetime(2020, 1, 1))
    assert (other.source, other.origin, other.notice) == (own.source, own.origin, own.notice)
    assert other.render([{"role": "user", "content": "x"}]) == own.render([{"role": "user", "content": "x"}])


def test_examples_beyond_the_models_context_are_told(job, tmp_path):
    (tmp_path / "t.jinja").write_text(TEMPLATE.replace("{{ strftime_now('%Y-%m-%d') }}", ""))
    rows = [[("user", "word " * 300), ("assistant", "yes")], ROWS[0]]
    (tmp_path / "chats.jsonl").write_text(
        "".join(json.dumps({"messages": [{"role": r, "content": c} for r, c in row]}) + "\n" for row in rows)
    )
    run = job(context=4096, ubatch=4096, batch=4096, max_steps=1)
    assert "1 example is longer than the model's context of 256 tokens" in (run.run_dir / "train.log").read_text()
