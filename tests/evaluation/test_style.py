"""Stylometry against its definitions, and evaluate style on a tiny model and on one whose answers are given."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import anytune
from anytune.errors import UserError
from anytune.evaluation import style as module
from anytune.evaluation.prompts import read_prompts
from anytune.evaluation.style_report import report, text
from anytune.evaluation.stylometry import habits, measures, spoken
from anytune.generation.generate import Reply
from tests.support import tiny
from tests.support.adapters import random_adapter

MAILS = Path(__file__).parents[2] / "examples" / "email" / "train.jsonl"
TEXTS = st.lists(st.text(alphabet="abc .,!?\n’'AB1—", max_size=60), min_size=4, max_size=8)


def wren(count=40):
    rows = [json.loads(line)["messages"] for line in MAILS.read_text("utf-8").splitlines()[:count]]
    return [row[1]["content"] for row in rows], [row[0]["content"] for row in rows]


def distance(measure, a, b):
    one, other = (measure.profiles(texts, np.ones((1, len(texts)))) for texts in (a, b))
    return float(measure.distance(one, other)[0])


@settings(max_examples=60, deadline=None)
@given(TEXTS, TEXTS)
def test_distances_are_distances(a, b):
    b = (b * 8)[: len(a)]
    for measure in measures(a, b):
        d = distance(measure, a, b)
        assert np.isnan(d) or d >= 0
        assert d == pytest.approx(distance(measure, b, a), nan_ok=True)
        same = distance(measure, a, a[::-1])  # order counts for nothing
        assert np.isnan(same) or same == pytest.approx(0, abs=1e-12)


def test_delta_is_burrows():
    author, base = ["the cat and the dog", "the dog", "a cat and a dog"], ["a cat", "and the end of it", "the the cat"]
    measure = measures(author, base)[0]
    assert measure.names == ("dog", "the", "a", "and", "cat")  # by frequency, then by letters
    frequency = np.array([[spoken(t).count(w) / len(spoken(t)) for w in measure.names] for t in author + base])
    deviation = frequency.std(axis=0)
    pooled = [" ".join(author), " ".join(base)]
    one, other = (np.array([spoken(t).count(w) / len(spoken(t)) for w in measure.names]) for t in pooled)
    wanted = np.mean([abs(x - y) / d for x, y, d in zip(one, other, deviation, strict=True) if d > 0])
    assert distance(measure, author, base) == pytest.approx(wanted)


def test_sentence_length_is_the_area_between_distributions():
    measure = measures(["x"], ["y"])[2]
    # 2, 4 and 6 words against 3, 3 and 9: sorted pairs differ by 1, 1 and 3
    a, b = ["one two. a b c d! a b c d e f"], ["a b c. a b c\na b c d e f g h i"]
    assert distance(measure, a, b) == pytest.approx(5 / 3)
    assert np.isnan(distance(measure, a, ["", ""]))


def test_an_authors_habits_are_found():
    messages, _ = wren()
    found = habits(messages)
    assert {"onwards,", "wren", "ahoy …", "p.s. goose report: …", "short version: …"} <= set(found)
    assert "p.s. …" not in found and "wren …" not in found  # said by the longer ones
    assert habits(["one thing", "another one", "all different", "none alike"]) == ()


def test_the_author_is_nearer_to_themself_than_to_others():
    messages, _ = wren(80)
    stiff = [
        f"Dear Sir or Madam,\n\nI hope this e-mail finds you well. I am writing to you regarding {number} matters."
        "\n\nBest regards,\nThe ProcessGroup"
        for number in range(40)
    ]
    for measure in measures(messages[:40], stiff):
        assert distance(measure, messages[40:], messages[:40]) < 0.7 * distance(measure, stiff, messages[:40])


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("models") / "tiny.gguf", "llama")


@pytest.fixture(scope="module")
def adapter(path, tmp_path_factory):
    return random_adapter(path, tmp_path_factory.mktemp("adapters") / "mine.gguf")


@pytest.fixture
def file(tmp_path):
    where = tmp_path / "test.jsonl"
    where.write_text("".join(line + "\n" for line in MAILS.read_text("utf-8").splitlines()[:6]), "utf-8")
    return where


def test_facts_when_the_adapter_writes_like_the_author(path, adapter, tmp_path, monkeypatch):
    """Answers are put into the model's mouth: the adapter's are other messages of the author, the base's are stiff."""
    from anytune.adapter.adapter import Adapter

    messages, requests = wren(24)
    where = tmp_path / "test.jsonl"
    where.write_text(
        "".join(
            json.dumps({"prompt": p, "completion": m}) + "\n" for p, m in zip(requests[:12], messages[:12], strict=True)
        )
    )

    def answers(model, adapter, ids, how, **_):
        said = messages[12:] if adapter is not None else ["Dear Sir,\n\nI am writing to you.\n\nBest regards,\nMe"] * 12
        return [Reply([1], [2], text=t, finish="stop") for t in said]

    monkeypatch.setattr("anytune.evaluation.compare.answer", answers)
    model = anytune.load(path, threads=1)
    facts = module.style(model, read_prompts(where), {"mine": Adapter.load(adapter, gguf=model.gguf)})
    for name, change in facts["change"].items():
        value, low, high = change["mine"]
        assert low <= value <= high < 0, name
        assert value == pytest.approx(facts["distances"][name]["mine"][0] - facts["distances"][name]["base"][0])
        assert facts["author"][name][0] < facts["distances"][name]["base"][0]
    rates = {h["habit"]: h for h in facts["habits"]}
    assert rates["onwards,"] == {"habit": "onwards,", "author": 1.0, "base": 0.0, "mine": 1.0}
    assert facts["answers"]["mine"]["ended"][0] == 1
    assert facts == module.style(model, read_prompts(where), {"mine": Adapter.load(adapter, gguf=model.gguf)})
    assert "onwards," in text(facts)
    assert "mine is closer to the author than the base in 4 of 4 distances (95" in text(facts)
    swapped = {
        **facts,
        "change": {
            name: {"mine": [-v for v in (c["mine"][0], c["mine"][2], c["mine"][1])]}
            for name, c in facts["change"].items()
        },
    }
    assert "in 0 of 4 distances, farther in 4" in text(swapped)
    assert report(facts).data["distances"] is facts["distances"]


def test_the_command(cli, path, adapter, file, tmp_path):
    args = ("evaluate", "style", "-m", path, "--lora", adapter, "-n", 6, "-t", 1)
    out = cli(*args, "-f", file, "--limit", 5, "-o", tmp_path / "r.html", "-o", tmp_path / "r.json", code=0)
    facts = json.loads((tmp_path / "r.json").read_text())
    assert facts["messages"] == 5 and set(facts["distances"]) == {
        "function words",
        "punctuation",
        "sentence length",
        "habits",
    }
    assert f"{facts['perplexity']['mine'][0]:.2f}" in out.out
    model = anytune.load(path, threads=1)
    from anytune.text.mask import encode_chat

    rows = [json.loads(line)["messages"] for line in file.read_text("utf-8").splitlines()[:5]]
    total = count = 0
    for row in rows:
        ids, loss = encode_chat(model.tokenizer, model.template, row)
        ids, loss = ids[: model.config.context], loss[: model.config.context]
        logits = model.logits(ids).astype(np.float64)
        logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        total -= sum(logs[t - 1, ids[t]] for t in range(len(ids)) if loss[t])
        count += sum(loss)
    assert facts["tokens"] == count
    assert facts["loss"]["base"][0] == pytest.approx(total / count, rel=1e-4)
    assert "<svg" in (tmp_path / "r.html").read_text("utf-8")


def test_messages_alone_are_continued(cli, path, adapter, tmp_path):
    rows = [
        "the rain in the west wind was in the air",
        "an old storm came on the sea and on",
        "here",
        "the worst of it all",
        "on the sea a wave is in the air",
    ]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    out = cli(
        "evaluate",
        "style",
        "-m",
        path,
        "--lora",
        adapter,
        "-n",
        4,
        "-t",
        1,
        "-f",
        tmp_path / "t.jsonl",
        "--json",
        code=0,
    )
    assert out.json["generation"]["form"] == "raw text" and out.json["messages"] == 4
    first = out.json["items"][0]
    assert (first["prompt"], first["reference"]) == ("the rain in the", "west wind was in the air")
    wanted = anytune.load(path, threads=1).generate("the rain in the", max_tokens=4, temperature=0, chat=False).strip()
    assert out.json["items"][0]["answers"]["base"] == wanted


def test_bad_input(cli, path, adapter, file, tmp_path):
    args = ("evaluate", "style", "-m", path, "--lora", adapter, "-t", 1, "-f")
    (tmp_path / "mixed.jsonl").write_text(
        file.read_text("utf-8") + json.dumps({"messages": [{"role": "user", "content": "who?"}]}) + "\n", "utf-8"
    )
    for files, why in (
        ((tmp_path / "mixed.jsonl",), "line 7: there is no message of the author"),
        ((file, "--limit", 3), "takes at least 4"),
        ((file, "-o", "r.txt"), "end in .html or .json"),
    ):
        outcome = cli(*args, *files, code=2)
        assert why in outcome.err and outcome.err.count("\n") == 1


def test_style_needs_an_adapter():
    with pytest.raises(UserError, match="nothing to compare"):
        module.style(None, [], {})
