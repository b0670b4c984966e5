"""evaluate biomed: tokens are those of training, scores those of whole sequences, the command's figures true."""

import json

import numpy as np
import pytest

import anytune
from anytune.adapter.adapter import Adapter
from anytune.evaluation import biomed
from anytune.evaluation.pubmedqa import LABELS, WORDINGS, Question
from anytune.text import build_dataset
from tests.evaluation import pubmedqa_files
from tests.support import models, tiny, twin
from tests.support.adapters import random_adapter
from tests.support.require import need

ANSWERS = [w.answers for w in WORDINGS.values()]
QUESTIONS = [
    Question("a", "Question: is the wind in the air? Answer: ", ANSWERS[0], 1),
    Question("b", "Q: the rest\nA: ", ANSWERS[1], 2),
    Question("c", "Abstract: the rain and the wind were on. ⅔\nQuestion: why? Answer: ", ANSWERS[0], 0),
]


@pytest.fixture(scope="module", params=["llama", "llama-spm"])
def model(request, tmp_path_factory):
    path = tiny.write(tmp_path_factory.mktemp("tiny") / "m.gguf", request.param)
    return anytune.load(path, device="numpy", threads=1)


@pytest.fixture(scope="module")
def adapter(model, tmp_path_factory):
    return Adapter.load(random_adapter(model.gguf.path, tmp_path_factory.mktemp("a") / "a.gguf"), gguf=model.gguf)


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("question", QUESTIONS, ids=lambda q: q.id)
def test_the_tokens_are_those_that_training_learns(model, question, raw, tmp_path):
    sequences, start = biomed._encode(model, None, question, raw)
    for text, ids in zip(question.answers, sequences, strict=True):
        (tmp_path / "d.jsonl").write_text(json.dumps({"prompt": question.prompt, "completion": text}) + "\n", "utf-8")
        data = build_dataset(tmp_path / "d.jsonl", model.tokenizer, None if raw else model.template, context=256)
        trained, loss = data.example(0)
        learned = np.flatnonzero(loss)
        assert learned[0] == start and trained[learned[-1]] in model.tokenizer.eog
        assert ids == trained[: learned[-1]].tolist()
        assert model.tokenizer.decode(ids[start:]).strip() == text


def by_hand(model, question, raw, adapter=None):
    """The answers' log-likelihoods from whole sequences, in float64."""
    sequences, _ = biomed._encode(model, adapter, question, raw)
    common = next(i for i in range(min(map(len, sequences))) if len({ids[i] for ids in sequences}) > 1)
    found = []
    for ids in sequences:
        x = model.logits(ids, adapter).astype(np.float64)
        x -= np.log(np.exp(x - x.max(axis=1, keepdims=True)).sum(axis=1, keepdims=True)) + x.max(axis=1, keepdims=True)
        found.append(sum(x[i - 1, ids[i]] for i in range(common, len(ids))))
    return found


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("batch", [1, 200, 4096])
def test_scores_are_those_of_whole_sequences(model, adapter, raw, batch):
    for side in (None, adapter):
        said = biomed.answer(model, QUESTIONS, side, raw=raw, new_tokens=0, batch=batch)
        hand = [by_hand(model, q, raw, side) for q in QUESTIONS]
        np.testing.assert_allclose(said.log_likelihoods, hand, rtol=1e-4, atol=1e-4)
        assert said.written is None
    assert np.abs(said.log_likelihoods - [by_hand(model, q, raw) for q in QUESTIONS]).max() > 0.01  # the adapter counts


@pytest.mark.parametrize("batch", [1, 4096])
def test_replies_are_those_of_generate(model, adapter, batch):
    for side in (None, adapter):
        said = biomed.answer(model, QUESTIONS, side, raw=False, new_tokens=7, batch=batch)
        alone = [model.generate(q.prompt, side, chat=True, max_tokens=7, temperature=0) for q in QUESTIONS]
        assert said.replies == alone


def test_scores_are_those_of_transformers(tmp_path):
    torch, path = need("torch"), tiny.write(tmp_path / "m.gguf", "gemma3")
    torch.set_num_threads(1)
    model, peer = anytune.load(path, device="numpy", threads=1), twin.transformers_model(path)
    said = biomed.answer(model, QUESTIONS, new_tokens=0)
    for question, scores in zip(QUESTIONS, said.log_likelihoods, strict=True):
        sequences, start = biomed._encode(model, None, question, None)
        start = max(start, next(i for i in range(min(map(len, sequences))) if len({s[i] for s in sequences}) > 1))
        for ids, score in zip(sequences, scores, strict=True):
            logs = torch.log_softmax(torch.from_numpy(twin.logits(peer, ids)).double(), -1)
            assert score == pytest.approx(float(sum(logs[i - 1, ids[i]] for i in range(start, len(ids)))), abs=1e-3)


def test_a_real_model_is_sure_where_it_can_be():
    """Chat and raw, multi-token answers: SmolLM2 continues a list of the same answers."""
    model = anytune.load(models.smollm2(), device="numpy", threads=2)
    for answers in ANSWERS:
        questions = [
            Question(word, f"Say {word}. {word}! {word}! {word}! {word}! {word}! ", answers, right)
            for right, word in enumerate(answers)
        ]
        assert biomed.answer(model, questions, raw=True, new_tokens=0).likeliest == [0, 1, 2]


@pytest.mark.parametrize(
    ("reply", "label"),
    [
        ("yes", "yes"),
        (" No.", "no"),
        ("**Maybe**, as", "maybe"),
        ("Uncertain. No", "maybe"),
        ("It is yes, not no", "yes"),
        ("", None),
        ("Nobody knows; yesterday", None),
        ("notable", None),
    ],
)
def test_answers_found_in_replies(reply, label):
    assert biomed.answer_in(reply) == (-1 if label is None else LABELS.index(label))


def test_a_question_longer_than_the_context(model):
    with pytest.raises(anytune.UserError, match="Question far has .* context is 256"):
        biomed.answer(model, [*QUESTIONS, Question("far", "wind " * 300, LABELS, 0)], raw=True)


def test_an_answer_that_the_prompt_swallows(tmp_path):
    model = anytune.load(tiny.write(tmp_path / "m.gguf", "llama"), device="numpy", threads=1)  # "h e" is a merge
    with pytest.raises(anytune.UserError, match="Question x: the answer 'e' merges"):
        biomed.answer(model, [Question("x", "th", ("e", "he", "a"), 0)], raw=True)


def test_facts_of_runs_by_hand():
    def run(name, likeliest, replies):
        return biomed.Answers(name, np.eye(3)[likeliest], replies)

    facts = biomed.evaluate(QUESTIONS, [run("base", [1, 1, 1], ["no", "eh", "no"]), run("mine", [1, 2, 0], ["no"] * 3)])
    assert facts["labels"] == {"yes": 1, "no": 1, "maybe": 1} and facts["majority"]["accuracy"] == pytest.approx(1 / 3)
    assert facts["runs"]["mine"]["likelihood"]["accuracy"] == 1
    assert facts["runs"]["base"]["generation"]["unanswered"] == 1
    assert [(c["method"], c["only_first"], c["only_second"]) for c in facts["comparisons"]] == [
        ("likelihood", 0, 2),
        ("generation", 0, 0),
    ]
    assert facts["comparisons"][0]["p_value"] == 0.5


def test_from_the_official_files_to_a_better_score(cli, tmp_path):
    """data build, train, evaluate: a tiny model learns questions whose words tell the answer; the report says so."""
    source, test = pubmedqa_files.write(tmp_path, {"yes": 12, "no": 12, "maybe": 12}, {"yes": 4, "no": 4, "maybe": 4})
    path = tiny.write(tmp_path / "m.gguf", "llama")
    cli(
        "data",
        "build",
        "pubmedqa",
        source,
        "--test",
        test,
        "--setting",
        "question-only",
        "--val-count",
        3,
        "-o",
        tmp_path / "set",
        code=0,
    )
    cli(
        "train",
        "-m",
        path,
        "-f",
        tmp_path / "set" / "train.jsonl",
        "--num-epochs",
        40,
        "--learning-rate",
        "1e-2",
        "-b",
        512,
        "--device",
        "numpy",
        "-t",
        1,
        "--run-dir",
        tmp_path / "run",
        "--output-adapter",
        tmp_path / "mine.gguf",
        code=0,
    )
    ask = ["evaluate", "biomed", "-m", path, "--lora", tmp_path / "mine.gguf", "--device", "numpy", "-t", 1]
    facts = cli(*ask, "-f", source, "--test", test, "--setting", "question-only", "--json", code=0).json
    assert facts["questions"] == 12
    for method in ("likelihood", "generation"):
        assert facts["runs"]["mine"][method]["accuracy"] > 0.9
        assert facts["runs"]["base"][method]["accuracy"] < 0.7
    assert {c["method"]: c["p_value"] for c in facts["comparisons"]}["generation"] < 0.05
    # what was built says the same as the official files
    reports = ["-o", tmp_path / "r.html", "-o", tmp_path / "r.json"]
    again = cli(*ask, "-f", tmp_path / "set" / "test.jsonl", *reports, code=0)
    report = json.loads((tmp_path / "r.json").read_text("utf-8"))
    assert report["runs"] == facts["runs"] and report["answers"] == facts["answers"]
    assert "McNemar" in again.out and "mine, likelihood" in again.out
    page = (tmp_path / "r.html").read_text("utf-8")
    assert "macro F1" in page and "McNemar" in page
