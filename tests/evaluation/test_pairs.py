"""evaluate compare of prompts on the command line, of two models, and of two adapters before a judge."""

import json
from dataclasses import replace

import numpy as np
import pytest

import anytune
from anytune.errors import UserError
from anytune.evaluation.compare import compare
from anytune.evaluation.judge import PairJudge
from anytune.evaluation.local_judge import VERDICTS, LocalJudge
from anytune.evaluation.prompts import Prompt
from tests.support import tiny
from tests.support.adapters import random_adapter

PROMPTS = [Prompt(n, ({"role": "user", "content": text},), text) for n, text in enumerate(("is it so", "the wind"), 1)]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    with pytest.MonkeyPatch.context() as patch:  # a judge reads both answers: its context must hold them
        for name in ("llama", "qwen3"):
            longer = replace(tiny.SHAPES[name], meta={"context_length": 2048})
            patch.setitem(tiny.SHAPES, f"{name}-long", longer)
        model = tiny.write(folder / "m.gguf", "llama-long")
        tiny.write(folder / "n.gguf", "qwen3-long")
    for name, seed in (("a", 1), ("b", 2)):
        random_adapter(model, folder / f"{name}.gguf", seed=seed)
    return folder


class Longer(PairJudge):
    """Prefers the longer text, and remembers who met whom."""

    name, criteria, asked, unclear = "longer", "length", 0, 0

    def __init__(self):
        self.met = []

    def ask(self, prompt, a, b, reference=None):
        self.met.append((prompt, a, b))
        return "A" if len(a) > len(b) else "B" if len(b) > len(a) else "tie"


def test_a_local_verdict_is_the_likeliest_ending_and_places_do_not_matter(files):
    judge = LocalJudge(anytune.load(files / "m.gguf", device="numpy", threads=1))
    ids, verdicts = judge._encode("why", "the wind", "on", "rain")
    sums = []
    for verdict in verdicts:
        whole = judge.model.logits([*ids, *verdict]).astype(np.float64)
        whole -= np.log(np.exp(whole - whole.max(1, keepdims=True)).sum(1, keepdims=True)) + whole.max(1, keepdims=True)
        sums.append(sum(whole[len(ids) + k - 1, token] for k, token in enumerate(verdict)))
    assert judge.ask("why", "the wind", "on", "rain") == VERDICTS[int(np.argmax(sums))]
    for one, other in (("the wind", "on"), ("a", "b"), ("same", "same")):
        assert judge.compare("why", one, other) == 1 - judge.compare("why", other, one)
    assert judge.compare("why", "same", "same") in (0.5, 0.0, 1.0) and judge.name == "m.gguf on this machine"
    with pytest.raises(UserError, match="context holds 2048 tokens"):
        judge.ask("why", "wind " * 3000, "on")


def test_a_pair_meets_in_both_orders_and_the_base_is_left_out(files):
    model = anytune.load(files / "m.gguf", device="numpy", threads=1)
    adapters = {name: anytune.Adapter.load(files / f"{name}.gguf", gguf=model.gguf) for name in "ab"}
    judge = Longer()
    facts = compare(model, PROMPTS, adapters, max_tokens=6, judge=judge, pair=("a", "b"))
    said = [item["answers"] for item in facts["items"]]
    assert judge.met == [
        met
        for p, texts in zip(PROMPTS, said, strict=True)
        for met in ((p.shown, texts["a"], texts["b"]), (p.shown, texts["b"], texts["a"]))
    ]
    found = facts["judge"]["adapters"]
    assert set(found) == {"a"} and facts["judge"]["against"] == "b"
    assert found["a"]["wins"] == sum(len(texts["a"]) > len(texts["b"]) for texts in said)
    assert sum(found["a"][key] for key in ("wins", "ties", "losses", "no_verdict")) == len(PROMPTS)


def test_the_pair_and_prompts_on_the_command_line(cli, files, tmp_path):
    start = ("evaluate", "compare", "-m", files / "m.gguf", "-p", "is it so", "-p", "the wind", "-n", 5)
    out = cli(
        *start,
        "--judge",
        files / "n.gguf",
        "--judge-pair",
        f"ours={files / 'a.gguf'}",
        f"peft={files / 'b.gguf'}",
        "-o",
        tmp_path / "r.json",
        "-o",
        tmp_path / "r.html",
        code=0,
    ).out
    assert "ours against peft:" in out and "win rate" in out
    assert "> is it so\nbase: " in out and "\npeft: " in out  # what was asked for on the command line is shown
    facts = json.loads((tmp_path / "r.json").read_text())
    assert facts["adapters"] == ["ours", "peft"] and facts["prompts"] == 2
    assert facts["judge"]["judge"] == "n.gguf on this machine"
    assert "against peft" in (tmp_path / "r.html").read_text()


def test_two_models_answer_in_their_own_forms(cli, files):
    out = json.loads(
        cli(
            "evaluate",
            "compare",
            "-m",
            files / "m.gguf",
            "--other",
            f"second={files / 'n.gguf'}",
            "-p",
            "is it so",
            "-n",
            5,
            "--json",
            code=0,
        ).out
    )
    assert out["adapters"] == ["second"] and set(out["items"][0]["answers"]) == {"base", "second"}
    alone = json.loads(cli("generate", "-m", files / "n.gguf", "-p", "is it so", "-n", 5, "--temp", 0, "--json").out)
    assert out["items"][0]["answers"]["second"] == alone["results"][0]["text"].strip()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("-p", "x"), "nothing to compare"),
        (("-p", "x", "-f", "{m}", "--lora", "{a}"), "not both"),
        (("--lora", "{a}"), "-f FILE, or -p TEXT"),
        (("-p", " ", "--lora", "{a}"), "-p is empty"),
        (("-p", "x", "--judge-pair", "{a}", "{b}"), "needs a judge"),
        (("-p", "x", "--lora", "{a}", "--judge", "{n}", "--judge-model", "x"), "omit --judge-model"),
        (("-p", "x", "--lora", "{a}", "--judge", "nowhere.gguf"), "There is no model file"),
        (("-p", "x", "--lora", "{a}", "--other", "a={n}"), "are called a"),
        (("-p", "x", "--other", "{n}", "--other", "n={m}"), "Two models are called n"),
    ],
)
def test_what_cannot_be_compared_is_told(cli, files, args, words):
    given = [arg.format(**{name: files / f"{name}.gguf" for name in "mnab"}) for arg in args]
    assert words in cli("evaluate", "compare", "-m", files / "m.gguf", *given, code=2).err
