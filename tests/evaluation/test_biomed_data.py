"""PubMedQA's files and the recipe: what is read, how it is split and put, and what is refused."""

import json
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anytune.errors import UserError
from anytune.evaluation import recipe
from anytune.evaluation.pubmedqa import LABELS, SETTINGS, ask, read_official, read_questions
from tests.evaluation import pubmedqa_files

COUNTS, TESTED = {"yes": 30, "no": 20, "maybe": 8}, {"yes": 10, "no": 8, "maybe": 2}


@pytest.fixture
def files(tmp_path):
    return pubmedqa_files.write(tmp_path, COUNTS, TESTED)


def rows(folder, name):
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text("utf-8").splitlines()]


@pytest.mark.parametrize(
    ("setting", "wording", "prompt"),
    [
        ("question-only", "pubmedqa", "Question: Is it at sea, 0?\nAnswer (yes, no or maybe): "),
        (
            "reasoning-free",
            "pubmedqa",
            "Abstract: It was at sea.\nQuestion: Is it at sea, 0?\nAnswer (yes, no or maybe): ",
        ),
        (
            "reasoning-required",
            "pubmedqa",
            "Abstract: Wind 0.\nRain.\nQuestion: Is it at sea, 0?\nAnswer (yes, no or maybe): ",
        ),
        ("question-only", "qa", "Q: Is it at sea, 0?\nA: "),
        ("reasoning-free", "qa", "It was at sea.\nQ: Is it at sea, 0?\nA: "),
    ],
)
def test_how_it_is_asked(files, setting, wording, prompt):
    source = next(s for s in read_official(files[0]) if s.id == "maybe0")
    question = ask(source, setting, wording)
    assert question.prompt == prompt
    assert question.answers[question.right] == ("maybe" if wording == "pubmedqa" else "Uncertain")


def test_the_test_set_is_the_official_one(files):
    found = read_questions(*files, setting="question-only")
    assert Counter(LABELS[q.right] for q in found) == TESTED
    assert [q.id for q in found if q.id.startswith("yes")] == [f"yes{n}" for n in range(10)]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.tuples(*[st.integers(1, 12)] * 3), st.integers(0, 12), st.integers(0, 2**32), st.sampled_from(recipe.BALANCES)
)
def test_splits(tmp_path, sizes, validation, seed, balance):
    counts = dict(zip(LABELS, (n + 2 for n in sizes), strict=True))
    source, test = pubmedqa_files.write(tmp_path, counts, dict.fromkeys(LABELS, 2))
    validation = min(validation, sum(sizes) - 1)
    facts = recipe.build(source, test, tmp_path / "set", validation=validation, balance=balance, seed=seed, force=True)
    assert facts["splits"]["validation"]["questions"] == validation
    assert (tmp_path / "set" / "validation.jsonl").exists() == (validation > 0)
    ids = {
        name: [row["id"] for row in rows(tmp_path / "set", name)]
        for name in ("train", "validation", "test")
        if facts["splits"][name]["questions"]
    }
    held, train = set(ids.get("validation", ())), Counter(ids["train"])
    assert len(ids["test"]) == 6 and not (set(ids["test"]) & (held | set(train))) and not held & set(train)
    left = Counter()
    for label, size in zip(LABELS, sizes, strict=True):
        own = sum(i.startswith(label) for i in held)
        assert abs(own - validation * size / sum(sizes)) < 1
        left[label] = size - own
    made = Counter(LABELS[next(n for n, w in enumerate(LABELS) if i.startswith(w))] for i in train.elements())
    there = {label: n for label, n in left.items() if n}
    wanted = {
        "none": there,
        "oversample": dict.fromkeys(there, max(there.values())),
        "undersample": dict.fromkeys(there, min(there.values())),
    }[balance]
    assert made == wanted
    if balance == "oversample":  # in whole rounds: no question more than once oftener than another of its class
        for label in there:
            times = [n for i, n in train.items() if i.startswith(label)]
            assert max(times) - min(times) <= 1 and len(times) == left[label]
    else:
        assert max(train.values()) == 1


def test_the_same_seed_gives_the_same_bytes(files, tmp_path):
    texts = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        facts = recipe.build(*files, tmp_path / name, validation=5, seed=seed)
        assert json.loads((tmp_path / name / "recipe.json").read_text("utf-8")) == facts
        texts.append((tmp_path / name / "train.jsonl").read_bytes())
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize("format", recipe.FORMATS)
@pytest.mark.parametrize("setting", SETTINGS)
def test_what_was_built_reads_as_the_files_do(files, tmp_path, format, setting):
    recipe.build(*files, tmp_path / "set", setting=setting, validation=5, format=format)
    assert read_questions(tmp_path / "set" / "test.jsonl") == read_questions(*files, setting=setting)


def test_rows_with_question_and_label(tmp_path):
    path = tmp_path / "rows.jsonl"
    row = {"question": "Is it?", "label": "Uncertain", "rationale_src": "It was.", "text": "x"}
    path.write_text(json.dumps(row) + "\n")
    (found,) = read_questions(path)
    assert (found.prompt, found.answers[found.right]) == ("Q: Is it?\nA: ", "Uncertain")
    (found,) = read_questions(path, setting="reasoning-free", wording="pubmedqa")
    assert found.prompt.startswith("Abstract: It was.\n") and found.answers[found.right] == "maybe"
    with pytest.raises(UserError, match="line 1 has no abstract"):
        read_questions(path, setting="reasoning-required")


GOOD = {"QUESTION": "a?", "CONTEXTS": ["b"], "LONG_ANSWER": "c", "final_decision": "yes"}


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.json", "{", "not valid JSON"),
        ("a.json", "[]", "one JSON object"),
        ("a.json", "{}", "one JSON object"),
        ("a.json", b"\xff", "not valid JSON"),
        ("a.json", "[" * 100_000, "not valid JSON"),
        ("a.json", json.dumps({"7": 1}), "question 7: an entry must be an object, not a number"),
        ("a.json", json.dumps({"7": GOOD | {"QUESTION": 3}}), "question 7: QUESTION"),
        ("a.json", json.dumps({"7": GOOD | {"CONTEXTS": "b"}}), "CONTEXTS a list"),
        ("a.json", json.dumps({"7": GOOD | {"final_decision": "perhaps"}}), "label 'perhaps' is none of"),
        ("a.json", json.dumps({"7": GOOD}), "give --test"),
        ("a.jsonl", "", "no questions"),
        ("a.jsonl", "{]", "line 1"),
        ("a.jsonl", json.dumps({"text": "b"}), "line 1: each row needs question and label"),
        ("a.jsonl", json.dumps({"question": "", "label": "No"}), "line 1: question"),
        ("a.jsonl", json.dumps({"question": "b", "label": None}), "line 1: the label None"),
        ("a.jsonl", json.dumps({"prompt": "b", "completion": "YES"}), "'YES' is none of"),
        ("a.jsonl", json.dumps({"prompt": "b", "completion": "well"}), "label 'well'"),
        ("a.jsonl", json.dumps({"messages": [{"content": "b"}, {"content": []}]}), "two messages"),
    ],
)
def test_files_that_are_refused(tmp_path, name, text, words):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=words):
        read_questions(tmp_path / name)


@pytest.mark.parametrize(
    ("truth", "words"),
    [({"none": "yes"}, "names the question none"), ({"yes0": "no"}, "answers question yes0"), ({"yes0": 3}, "label 3")],
)
def test_a_test_set_of_another_release(files, truth, words):
    files[1].write_text(json.dumps(truth))
    with pytest.raises(UserError, match=words):
        read_questions(*files)


def test_commands_say_what_is_wrong(cli, files, tmp_path):
    source, test = files
    (tmp_path / "taken").write_text("")
    build = ["data", "build", "pubmedqa", source]
    for args, words in (
        (["--test", test, "-o", tmp_path / "s", "--val-count", 38], "38 must be below the 38"),
        (["--test", test, "-o", tmp_path / "taken", "--val-count", 3], "taken is a file"),
        (["--test", tmp_path / "none.json", "-o", tmp_path / "s"], "There is no test file"),
    ):
        got = cli(*build, *args, code=2)
        assert words in got.err and "Traceback" not in got.err
    assert not (tmp_path / "s").exists()
    got = cli("evaluate", "biomed", "-m", tmp_path / "m.gguf", "-f", source, code=2)
    assert "give --test" in got.err
    got = cli("evaluate", "biomed", "-m", tmp_path / "m.gguf", "-f", source, "--test", test, "-o", "r.pdf", code=2)
    assert "must end in .html or .json" in got.err
    recipe.build(*files, tmp_path / "set", validation=3)
    got = cli(
        "evaluate",
        "biomed",
        "-m",
        tmp_path / "m.gguf",
        "-f",
        tmp_path / "set" / "test.jsonl",
        "--setting",
        "question-only",
        code=2,
    )
    assert "finished prompts" in got.err


def test_a_disk_that_fills_up_leaves_no_half_file(files, tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="No space left"):
        recipe.build(*files, tmp_path / "set", validation=3)
    assert list((tmp_path / "set").iterdir()) == []
