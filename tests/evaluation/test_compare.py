"""evaluate compare on tiny models: prompts of every form, measures against their definitions, reports, bad input."""

import gzip
import json

import numpy as np
import pytest

import anytune
from anytune.adapter.adapter import Adapter
from anytune.errors import UserError
from anytune.evaluation.answers import answer, losses
from anytune.evaluation.bootstrap import mean_interval, resampled
from anytune.evaluation.compare import compare
from anytune.evaluation.prompts import Form, read_prompts
from anytune.evaluation.similarity import chrf
from anytune.generation.sampling import Sampling
from tests.support import tiny
from tests.support.adapters import random_adapter

GREEDY = Sampling(temperature=0, seed=0)
CHATS = [
    ("the rain", "on the sea"),
    ("a wave", "in the west wind"),
    ("say it", "the worst of the rain"),
    ("where", "here"),
]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("models") / "tiny.gguf", "llama")


@pytest.fixture(scope="module")
def model(path):
    return anytune.load(path, threads=1)


@pytest.fixture(scope="module")
def adapter(path, tmp_path_factory):
    return random_adapter(path, tmp_path_factory.mktemp("adapters") / "mine.gguf")


@pytest.fixture
def file(tmp_path):
    rows = [{"messages": [{"role": "user", "content": a}, {"role": "assistant", "content": b}]} for a, b in CHATS]
    where = tmp_path / "heldout.jsonl"
    where.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return where


def test_prompts_of_every_form(tmp_path):
    def read(name, *rows, columns=None):
        text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
        (tmp_path / name).write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
        return [(p.line, p.shown, p.reference, p.text) for p in read_prompts(tmp_path / name, columns)]

    assert read("p.txt", "one", "", "  two ") == [(1, "one", None, "one"), (3, "two", None, "two")]
    assert read("p.jsonl", {"prompt": "one"}, {"prompt": "two"}) == [(1, "one", None, "one"), (2, "two", None, "two")]
    assert read("p.jsonl.gz", {"prompt": "one"}) == [(1, "one", None, "one")]
    assert read("p.jsonl", {"prompt": "one", "completion": "two"}) == [(1, "one", "two", "one")]
    assert read("p.jsonl", {"q": "one", "a": "two"}, columns={"prompt": "q", "completion": "a"}) == [
        (1, "one", "two", "one")
    ]
    user, said = {"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}
    assert read("p.jsonl", {"messages": [user]}, {"messages": [user, said]}) == [
        (1, "one", None, None),
        (2, "one", "two", None),
    ]
    shown = read("p.jsonl", {"messages": [user, said, user, said]})[0]
    assert shown[1:3] == ("user: one\n\nassistant: two\n\nuser: one", "two")
    with pytest.raises(UserError, match=r"p\.jsonl, line 1: there is nothing before"):
        read("p.jsonl", {"messages": [said]})
    with pytest.raises(UserError, match="contains no text"):
        read("p.txt", "", "  ")


def test_facts_are_what_their_names_say(model, adapter, file):
    sides = {"mine": Adapter.load(adapter, gguf=model.gguf)}
    facts = compare(model, read_prompts(file), sides, max_tokens=8, batch=3)
    prompts = [a for a, _ in CHATS]
    alone = {
        "base": [model.generate(p, max_tokens=8, temperature=0).strip() for p in prompts],
        "mine": [model.generate(p, sides["mine"], max_tokens=8, temperature=0).strip() for p in prompts],
    }
    assert [item["answers"] for item in facts["items"]] == [
        {"base": a, "mine": b} for a, b in zip(alone["base"], alone["mine"], strict=True)
    ]
    assert alone["base"] != alone["mine"]
    for side in ("base", "mine"):
        scores = [chrf(text, reference) for text, (_, reference) in zip(alone[side], CHATS, strict=True)]
        assert facts["to_reference"]["chrF"][side][0] == pytest.approx(np.mean(scores))
    gain, both = facts["gain"]["chrF"]["mine"], facts["to_reference"]["chrF"]
    assert gain[0] == pytest.approx(both["mine"][0] - both["base"][0]) and gain[1] <= gain[0] <= gain[2]
    to_base = [chrf(b, a) for a, b in zip(alone["base"], alone["mine"], strict=True)]
    assert facts["to_base"]["chrF"]["mine"][0] == pytest.approx(np.mean(to_base))
    assert -1 <= facts["cosine_of_unrelated"] <= 1
    assert facts == compare(model, read_prompts(file), sides, max_tokens=8, batch=3)  # again the same


def test_losses_are_those_of_the_logits(model, file):
    prompts = read_prompts(file)
    form = Form.of(model, {})
    examples = [form.encode_reference(p) for p in prompts]
    sums, counts = losses(model, None, examples)
    for (ids, loss), found, count, prompt in zip(examples, sums, counts, prompts, strict=True):
        logits = model.logits(ids).astype(np.float64)
        logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        wanted = [-logs[t - 1, ids[t]] for t in range(len(ids)) if loss[t]]
        assert (found, count) == (pytest.approx(sum(wanted), rel=1e-4), len(wanted))
        learned = model.tokenizer.decode([i for i, on in zip(ids, loss, strict=True) if on], skip_special=True)
        assert learned.strip() == prompt.reference


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        (
            "llama",
            [{"messages": [{"role": "user", "content": "rain"}, {"role": "assistant", "content": "on the sea"}]}],
        ),
        (
            "llama",
            [
                {"prompt": "the rain ", "completion": "on the sea"},
                {"prompt": "a", "completion": " wave", "system": "be kind"},
            ],
        ),
        ("llama-spm", [{"prompt": "the rain", "completion": " on the sea"}, {"prompt": "a", "completion": "wave"}]),
    ],
)
def test_references_are_encoded_as_training_encodes_them(tmp_path, name, rows):
    """With a template of the model's own and without one."""
    from anytune.text import build_dataset

    loaded = anytune.load(tiny.write(tmp_path / "m.gguf", name), threads=1)
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for chat in (True, False) if "prompt" in rows[0] else (True,):
        template = loaded.template if chat else None
        built = build_dataset(
            tmp_path / "d.jsonl", loaded.tokenizer, template, context=256, assistant_loss_only="messages" in rows[0]
        )
        form = Form.of(loaded, {}, chat=chat)
        for i, prompt in enumerate(read_prompts(tmp_path / "d.jsonl")):
            ids, loss = built.example(i)
            assert form.encode_reference(prompt) == (ids.tolist(), loss.tolist())
            start = form.encode(prompt)
            assert chat is False or start == ids[: len(start)].tolist()


def test_batches_keep_the_order(model):
    ids = [model.tokenize(text) for text in ("a sea of the worst kind", "on", "the rain in", "on the")]
    alone = [answer(model, None, [one], GREEDY, max_tokens=6)[0].ids for one in ids]
    seen = []
    together = answer(model, None, ids, GREEDY, max_tokens=6, batch=3, progress=lambda *x: seen.append(x))
    assert [reply.ids for reply in together] == alone
    assert seen[-1] == (24, 24) and [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_intervals_cover_the_mean_as_often_as_they_say():
    rng = np.random.default_rng(3)
    draws = resampled(40, 0, 500)
    hits = sum(low <= 0 <= high for _, low, high in (mean_interval(rng.standard_normal(40), draws) for _ in range(300)))
    assert 0.89 <= hits / 300 <= 0.98
    value, low, high = mean_interval([1.0, np.nan, 3.0], resampled(3, 0))
    assert value == 2 and 1 <= low <= high <= 3
    assert np.isnan(mean_interval([np.nan], resampled(1, 0))[0])


def test_the_command_writes_both_reports(cli, path, adapter, file, tmp_path):
    out = cli(
        "evaluate",
        "compare",
        "-m",
        path,
        "--lora",
        adapter,
        "--lora",
        f"twin={adapter}",
        "-f",
        file,
        "-n",
        6,
        "-o",
        tmp_path / "r.html",
        "-o",
        tmp_path / "r.json",
        "-t",
        1,
        code=0,
    )
    facts = json.loads((tmp_path / "r.json").read_text())
    assert facts["adapters"] == ["mine", "twin"] and len(facts["items"]) == 4
    assert facts["generation"]["temperature"] == 0 and facts["facts"]["generation"].startswith(
        "greedy, at most 6 tokens"
    )
    assert facts["to_reference"]["chrF"]["mine"] == facts["to_reference"]["chrF"]["twin"]
    assert f"{facts['to_reference']['chrF']['mine'][0]:.1f}" in out.out
    html = (tmp_path / "r.html").read_text()
    assert "the worst of the rain" in html and "<svg" in html
    out = cli("evaluate", "compare", "-m", path, "--lora", adapter, "-f", file, "-n", 6, "-t", 1, "--json", code=0)
    assert out.json["to_reference"]["chrF"]["mine"] == facts["to_reference"]["chrF"]["mine"]


def test_without_references_only_the_change_is_measured(cli, path, adapter, tmp_path):
    (tmp_path / "p.txt").write_text("the rain\non the sea\n")
    out = cli(
        "evaluate",
        "compare",
        "-m",
        path,
        "--lora",
        adapter,
        "-f",
        tmp_path / "p.txt",
        "-n",
        4,
        "-t",
        1,
        "--raw",
        "--json",
        code=0,
    )
    assert out.json["references"] == 0 and "to_reference" not in out.json
    assert out.json["generation"]["form"] == "raw text"
    wanted = anytune.load(path, threads=1).generate("the rain", max_tokens=4, temperature=0, chat=False).strip()
    assert out.json["items"][0]["answers"]["base"] == wanted
    cli(
        "evaluate",
        "compare",
        "-m",
        path,
        "--lora",
        adapter,
        "-f",
        tmp_path / "p.txt",
        "-n",
        4,
        "-t",
        1,
        "-o",
        tmp_path / "r.html",
        code=0,
    )


def test_bad_input_is_one_sentence_before_any_work(cli, path, adapter, file, tmp_path):
    start = ("evaluate", "compare", "-m", path, "-f", file, "-t", 1)
    long = tmp_path / "long.txt"
    long.write_text("on\n" + "rain " * 3000)
    for args, why in (
        ((*start, "--lora", adapter, "-o", tmp_path / "r.pdf"), "end in .html or .json"),
        ((*start, "--lora", adapter, "--lora", adapter), "Two adapters are called mine"),
        ((*start, "--lora", f"base={adapter}"), "are reserved"),
        ((*start, "--lora", adapter, "--judge", "http://localhost:1/v1"), "belong together"),
        ((*start, "--lora", adapter, "--judge", "ftp://x", "--judge-model", "m"), "must begin with http"),
        ((*start, "--lora", adapter, "--temp", "nan"), "temperature (--temp) must be"),
        ((*start, "--lora", tmp_path / "no.gguf"), "no adapter file"),
        (("evaluate", "compare", "-m", path, "--lora", adapter, "-f", long, "-t", 1), "line 2: the prompt has"),
    ):
        outcome = cli(*args, code=2)
        assert why in outcome.err and outcome.err.count("\n") == 1 and "Traceback" not in outcome.err


def test_adapters_with_different_templates_are_not_mixed(model, adapter):
    one = Adapter.load(adapter, gguf=model.gguf)
    other = Adapter.load(adapter, gguf=model.gguf)
    other.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(UserError, match="different prompt formats"):
        Form.of(model, {"one": one, "other": other})
    assert Form.of(model, {"one": one, "other": other}, chat=False).template is None
