"""--labels: a yes/no set beside the one of three classes, built, read, scored and reported."""

import json

import pytest

from anytune.errors import UserError
from anytune.evaluation import recipe
from anytune.evaluation.biomed import answer_in
from anytune.evaluation.pubmedqa import LABELS, chosen_labels, read_questions
from tests.evaluation import pubmedqa_files
from tests.support import tiny

COUNTS, TESTED = {"yes": 9, "no": 7, "maybe": 5}, {"yes": 3, "no": 3, "maybe": 2}


@pytest.fixture
def files(tmp_path):
    return pubmedqa_files.write(tmp_path, COUNTS, TESTED)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (None, LABELS),
        ("yes,no", ("yes", "no")),
        ("No, Yes", ("yes", "no")),
        ("uncertain,yes", ("yes", "maybe")),
        ("maybe,no,yes", LABELS),
    ],
)
def test_what_the_flag_means(given, wanted):
    assert chosen_labels(given) == wanted


@pytest.mark.parametrize("given", ["", "yes", "yes,yes", "yes,perhaps", "maybe,uncertain", ","])
def test_what_is_refused(given):
    with pytest.raises(UserError, match="--labels takes"):
        chosen_labels(given)


@pytest.mark.parametrize("format", recipe.FORMATS)
def test_a_set_of_two_classes_never_names_the_third(files, tmp_path, format):
    facts = recipe.build(
        *files, tmp_path / "set", setting="question-only", validation=2, format=format, labels=("yes", "no")
    )
    assert {name: split["questions"] for name, split in facts["splits"].items()} == {
        "train": 8,
        "validation": 2,
        "test": 6,
    }
    for name in facts["splits"]:
        text = (tmp_path / "set" / f"{name}.jsonl").read_text("utf-8")
        assert "maybe" not in text and "(yes or no)" in text
    built = read_questions(tmp_path / "set" / "test.jsonl", labels=("yes", "no"))
    assert built == read_questions(*files, setting="question-only", labels=("yes", "no"))
    assert {q.labels for q in built} == {("yes", "no")} and {len(q.answers) for q in built} == {2}


def test_rows_of_other_labels_are_left_out(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "".join(json.dumps({"question": "Is it?", "label": label}) + "\n" for label in ("Yes", "Uncertain", "No"))
    )
    found = read_questions(path, labels=("yes", "maybe"))
    assert [q.answers[q.right] for q in found] == ["Yes", "Uncertain"]
    path.write_text(json.dumps({"question": "Is it?", "label": "No"}) + "\n")
    with pytest.raises(UserError, match="no questions with these labels"):
        read_questions(path, labels=("yes", "maybe"))


def test_a_reply_of_another_label_is_no_answer():
    assert answer_in("Maybe.", ("yes", "no")) == -1
    assert answer_in("No.", ("yes", "no")) == 1


def test_the_commands(cli, files, tmp_path):
    tiny.write(tmp_path / "m.gguf", "llama")
    built = cli(
        "data",
        "build",
        "pubmedqa",
        files[0],
        "--test",
        files[1],
        "--labels",
        "yes,no",
        "--val-count",
        2,
        "-o",
        tmp_path / "set",
    ).out
    assert "maybe" not in built and "3 no" in built
    out = cli(
        "evaluate",
        "biomed",
        "-m",
        tmp_path / "m.gguf",
        "-f",
        tmp_path / "set" / "test.jsonl",
        "--labels",
        "yes,no",
        "-n",
        2,
        "-o",
        tmp_path / "r.html",
        "-o",
        tmp_path / "r.json",
    ).out
    assert "maybe" not in out and "6 questions (3 yes, 3 no)" in out
    facts = json.loads((tmp_path / "r.json").read_text())
    assert set(facts["labels"]) == {"yes", "no"}
    assert all(
        set(run["log_likelihoods"]) == {"yes", "no"} for item in facts["answers"] for run in item["runs"].values()
    )
