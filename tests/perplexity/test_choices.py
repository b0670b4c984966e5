"""Scores of given answers, against sums by hand, and their file formats."""

import json

import numpy as np
import pytest

import anytune
from anytune.cli.main import run as command
from anytune.errors import UserError
from anytune.likelihood import choices
from tests.support import models, tiny

TASKS = [
    choices.Task(1, "the west wind was", ("in the air", "an old hat", "in there", "on"), 0),
    choices.Task(2, "an", ("old storm came", "old storm came on and on", "other"), 2),
    choices.Task(3, "in the rest of the air there is", ("the", "the west"), 1),
]


@pytest.fixture(scope="module", params=["llama", "llama-spm"])
def model(request, tmp_path_factory):
    path = tiny.write(tmp_path_factory.mktemp("tiny") / "m.gguf", request.param)
    return anytune.load(path, device="numpy", threads=1)


def by_hand(model, task):
    """(sum of log-probabilities, tokens) of each ending, after what all have in common."""
    sequences = [model.tokenize(f"{task.context} {choice}") for choice in task.choices]
    common = 0
    while common < min(map(len, sequences)) - 1 and len({ids[common] for ids in sequences}) == 1:
        common += 1
    found = []
    for ids in sequences:
        x = model.logits(ids).astype(np.float64)
        x -= np.log(np.exp(x).sum(axis=1, keepdims=True))
        found.append((sum(x[i - 1, ids[i]] for i in range(common, len(ids))), len(ids) - common))
    return found


@pytest.mark.parametrize("batch", [1, 60, 2048])
def test_the_sums_by_hand(model, batch):
    facts = choices.score_choices(model, TASKS, batch=batch)
    hand = [by_hand(model, task) for task in TASKS]
    means = [int(np.argmax([total / count for total, count in task])) for task in hand]
    sums = [int(np.argmax([total for total, _ in task])) for task in hand]
    assert facts["choices"] == means
    assert facts["right"] == sum(a == task.answer for a, task in zip(means, TASKS, strict=True))
    assert facts["accuracy_sum"] == np.mean([a == task.answer for a, task in zip(sums, TASKS, strict=True)])


def test_a_real_model_knows_better_than_chance():
    facts = choices.score_choices(
        anytune.load(models.smollm2(), device="numpy", threads=2),
        [
            choices.Task(1, "The capital of France is", ("a potato.", "Paris.", "seventeen.", "of of."), 1),
            choices.Task(
                2, "She opened the umbrella because it was", ("raining.", "delicious.", "prime.", "an idea."), 0
            ),
            choices.Task(3, "Two plus two equals", ("the sea.", "running.", "purple.", "four."), 3),
            choices.Task(4, "The dog wagged its", ("ceiling.", "algebra.", "tail.", "Tuesday."), 2),
        ],
    )
    assert facts["right"] == 4 and facts["interval"][0] > 0.25 and facts["interval"][1] == pytest.approx(1)


def test_both_formats_say_the_same():
    six = "the wind was\n1\nin\non\nat\nof\n\n"
    line = json.dumps({"context": "the wind was", "choices": ["in", "on", "at", "of"], "answer": 1})
    assert choices.read_hellaswag(six, "a") == choices.read_choices(line, "b")


@pytest.mark.parametrize(
    ("read", "text", "words"),
    [
        (choices.read_hellaswag, "a\n0\nb\nc\nd", "6"),
        (choices.read_hellaswag, "", "0 lines"),
        (choices.read_hellaswag, "a\n4\nb\nc\nd\ne", "line 1"),
        (choices.read_hellaswag, "a\nfirst\nb\nc\nd\ne", "first"),
        (choices.read_choices, "", "no tasks"),
        (choices.read_choices, "\n[1]", "line 2"),
        (choices.read_choices, '{"context": "a", "choices": ["b"], "answer": 0}', "at least two"),
        (choices.read_choices, '{"context": "a", "choices": ["b", 3], "answer": 0}', "line 1"),
        (choices.read_choices, '{"context": "a", "choices": ["b", "c"], "answer": 2}', "from 0 to 1"),
        (choices.read_choices, '{"context": "a", "choices": ["b", "c"], "answer": null}', "None"),
    ],
)
def test_mistakes_in_files(read, text, words):
    with pytest.raises(UserError, match=words):
        read(text, "tasks.txt")


def test_a_task_that_is_too_long(model):
    with pytest.raises(UserError, match="line 7"):
        choices.score_choices(model, [choices.Task(7, "the " * 400, ("a", "b"), 0)])


def test_the_interval():
    """Wilson's, at values that textbooks print."""
    assert choices.wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    for count in range(1, 80):
        for right in range(count + 1):
            low, high = choices.wilson(right, count)
            assert 0 <= low <= right / count <= high <= 1 and high - low > 0.04, (right, count)
        assert choices.wilson(0, count)[0] == pytest.approx(0, abs=1e-15)


def test_the_command(model, tmp_path, capsys):
    path = tmp_path / "tasks.jsonl"
    path.write_text(
        "\n".join(json.dumps({"context": t.context, "choices": t.choices, "answer": t.answer}) for t in TASKS), "utf-8"
    )
    args = ["perplexity", "-m", str(model.gguf.path), "-f", str(path), "--multiple-choice", "--device", "numpy"]
    assert command([*args, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tasks"] == 3
    assert command(args) == 0
    assert "of 3 right" in capsys.readouterr().out
