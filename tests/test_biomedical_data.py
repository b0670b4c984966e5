"""The biomedical example: its files agree with each other and with their script, and train as they are."""

import json
import sys
from collections import Counter
from pathlib import Path

import pytest

from anytune.evaluation.pubmedqa import read_questions
from tests.evaluation import pubmedqa_files
from tests.cli.conftest import cli  # noqa: F401
from tests.support import tiny

FOLDER = Path(__file__).parents[1] / "examples" / "biomedical"
SPLITS = {"train": 264, "validation": 33, "test": 33}


def rows(place: str, name: str, folder: Path = FOLDER) -> list[dict]:
    text = (folder / place / f"{name}.jsonl").read_text("utf-8")
    return [json.loads(line) for line in text.removesuffix("\n").split("\n")]  # U+2028 ends no line


@pytest.mark.parametrize("name", SPLITS)
def test_chats_and_pairs_say_the_same(name):
    chats, pairs = rows("", name), rows("pairs", name)
    assert len(chats) == SPLITS[name] == len(rows("text", name))
    for chat, pair in zip(chats, pairs, strict=True):
        assert [m["role"] for m in chat["messages"]] == ["user", "assistant"]
        assert [m["content"] for m in chat["messages"]] == [pair["prompt"], pair["completion"]]
        assert chat["id"] == pair["id"]
    two = {row["id"]: row for row in rows("yes-no", name)}
    assert set(two) == {row["id"] for row in pairs if row["completion"] != "maybe"}
    assert {row["completion"] for row in two.values()} == {"yes", "no"}


def test_no_question_is_in_two_splits():
    seen = Counter(row["id"] for name in SPLITS for row in rows("", name))
    assert len(seen) == 330 and max(seen.values()) == 1


def test_licence_and_citation_are_kept():
    assert "MIT License" in (FOLDER / "LICENSE").read_text("utf-8")
    assert "@inproceedings{jin2019pubmedqa" in (FOLDER / "README.md").read_text("utf-8")


def test_all_files_are_scored():
    for place, labels in (("", ("yes", "no", "maybe")), ("pairs", ("yes", "no", "maybe")), ("yes-no", ("yes", "no"))):
        found = read_questions(FOLDER / place / "test.jsonl", labels=labels)
        assert len(found) == len(rows(place, "test")) and {q.labels for q in found} == {labels}


def test_the_script_leaves_the_official_test_out_and_repeats_itself(tmp_path, monkeypatch):
    files = pubmedqa_files.write(tmp_path, {"yes": 300, "no": 200, "maybe": 60}, {"yes": 24, "no": 31, "maybe": 5})
    monkeypatch.syspath_prepend(str(FOLDER))
    sys.modules.pop("make", None)
    from make import make

    for name in ("one", "two"):
        make(*files, tmp_path / name)
    tested = set(json.loads(files[1].read_text()))
    for name, count in SPLITS.items():
        found = rows("", name, tmp_path / "one")
        assert len(found) == count and not tested & {row["id"] for row in found}
        assert len({row["messages"][1]["content"] for row in found}) == 3
        for place in ("", "pairs", "yes-no", "text"):
            one, two = (tmp_path / side / place / f"{name}.jsonl" for side in ("one", "two"))
            assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize("place", ["", "pairs", "yes-no", "text"])
def test_each_form_trains_on_its_answers_alone(cli, tmp_path, place):
    model = tiny.write(tmp_path / "m.gguf", "llama")
    out = cli(
        "train",
        "-m",
        model,
        "-f",
        FOLDER / place / "validation.jsonl",
        "--assistant-loss-only",
        "--max-steps",
        "1",
        "-t",
        1,
        "-o",
        tmp_path / "a.gguf",
        "-c",
        512,
    )
    assert (tmp_path / "a.gguf").is_file()
    if place == "text":
        assert "read as questions and answers" in out.err and "all of the plain text" not in out.err
