"""evaluate score: files in every form give the same figures, and the figures are sklearn's definitions by hand."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anytune.errors import UserError
from anytune.evaluation.score import cosine, pair, read_answers, score
from tests.cli.conftest import cli  # noqa: F401 (fixture)

SAID = ["Yes, it does.", "no", "It is unclear: maybe", "No. Rationale: yes is wrong", "nothing of the kind"]
TRUE = ["yes", "yes", "maybe", "no", "no"]


def test_the_first_label_that_is_named_counts():
    facts = score(list(zip(SAID, TRUE)))
    assert facts["labels"] == ["maybe", "no", "yes"] and facts["right"] == 3 and facts["accuracy"] == 0.6
    assert facts["unanswered"] == 1
    assert facts["classes"]["no"] == {"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 2}
    # longer labels win over those they begin with, and a label inside a word is none
    facts = score([("not sure", "not sure"), ("notable", "not")], ["not", "not sure"])
    assert facts["right"] == 1 and facts["unanswered"] == 1


def test_without_labels_the_same_words_are_right():
    facts = score([("The cat  sat.", "the cat sat"), ("a dog", "a dog ran"), ("", "x y z"), ("b", "so it is")])
    assert facts["labels"] is None and facts["right"] == 1 and facts["accuracy"] == 0.25
    assert facts["jaccard"] == pytest.approx((1 + 2 / 3) / 4)


def test_files_of_every_form_hold_the_same_answers(tmp_path, cli):  # noqa: F811
    files = {
        "a.txt": "".join(line + "\n" for line in SAID),
        "b.jsonl": "".join(json.dumps({"prompt": "p", "prediction": line}) + "\n" for line in SAID),
        "c.jsonl": "".join(json.dumps(line) + "\n" for line in SAID),
        "d.jsonl": "".join(
            json.dumps({"messages": [{"role": "user", "content": "yes"}, {"role": "assistant", "content": line}]})
            + "\n"
            for line in SAID
        ),
        "e.json": json.dumps([{"answer": line} for line in SAID]),
        "f.json": json.dumps({str(n): line for n, line in enumerate(SAID, 1)}),
        "g.txt": "\ufeff" + "\r\n".join(SAID),
    }
    (tmp_path / "truth.txt").write_text("\n".join(TRUE))
    for name, text in files.items():
        (tmp_path / name).write_bytes(text.encode())
        assert list(read_answers(tmp_path / name).values()) == SAID, name
        assert cli("evaluate", "score", tmp_path / name, tmp_path / "truth.txt", "--json", code=0).json["right"] == 3
    told = cli("evaluate", "score", tmp_path / "a.txt", tmp_path / "truth.txt", code=0).out
    assert "accuracy  60.0 %" in told and "name none of" in told


def test_ids_pair_answers_whatever_their_order():
    truths = {"17": "yes", "4": "no"}
    assert pair({"4": "b", "9": "c", "17": "a"}, truths) == [("a", "yes"), ("b", "no")]
    with pytest.raises(UserError, match="Predictions: 3, truths: 2"):
        pair({"x": "a", "y": "b", "z": "c"}, truths)


@pytest.mark.parametrize(
    "name, text, said",
    [
        ("a.jsonl", '{"other": 1}\n', "entry 1"),
        ("a.json", "{", "not valid JSON"),
        ("a.json", "3", "not valid JSON"),
        ("a.txt", "", "no answers"),
        ("a.jsonl", "[" * 100_000, "not valid JSON"),
        ("a.json", '{"1": "a", "1": "b"}', "is duplicated"),
    ],
)
def test_what_is_no_answer_is_refused(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=said):
        read_answers(tmp_path / name)


def test_a_truth_beside_the_labels_is_refused(tmp_path, cli):  # noqa: F811
    (tmp_path / "a.txt").write_text("yes\nno\n")
    (tmp_path / "b.txt").write_text("yes\nperhaps\n")
    command = ("evaluate", "score", tmp_path / "a.txt", tmp_path / "b.txt", "--labels")
    assert "Truth 2" in cli(*command, "yes,no", code=2).err
    assert "two different" in cli(*command, "yes,", code=2).err


@given(st.text(), st.text())
def test_cosine_is_symmetric_and_one_for_the_same_words(a, b):
    assert 0 <= cosine(a, b) <= 1 + 1e-12 and cosine(a, b) == pytest.approx(cosine(b, a)) and cosine(a, a) >= 1 - 1e-12
