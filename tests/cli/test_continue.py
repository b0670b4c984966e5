"""--lora: training goes on with the adapter's own template and shape, and says when the base is another."""

import json
import re

import numpy as np
import pytest

import anytune
from anytune.errors import UserError
from anytune.gguf import GGUF, write_gguf
from tests.support import tiny
from tests.support.adapters import random_adapter

OTHER = (
    "{% for m in messages %}{{ '[' + m.role + '] ' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant] ' }}{% endif %}"
)
QUICK = ["-c", "64", "-ub", "64", "-b", "64", "--max-steps", "1", "-t", "1", "--device", "numpy"]


def template_of(path):
    with GGUF.open(path) as gguf:
        return gguf.metadata.get("tokenizer.chat_template")


@pytest.fixture
def first(cli, model, chats, tmp_path, monkeypatch):
    """An adapter that was trained with a template of its own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.jinja").write_text(OTHER)
    cli(
        "train",
        "-m",
        model,
        "-f",
        chats,
        "--chat-template",
        "other.jinja",
        "--lora-rank",
        "4",
        "-o",
        "a1.gguf",
        *QUICK,
        "-q",
        code=0,
    )
    return tmp_path / "a1.gguf"


def test_training_goes_on_with_the_adapters_template(first, cli, model, chats, tmp_path):
    assert template_of(first) == OTHER
    said = cli("train", "-m", model, "-f", chats, "--lora", first, "-o", "a2.gguf", *QUICK, code=0).err
    assert template_of("a2.gguf") == OTHER and "adapter's chat template" in said
    (tmp_path / "third.jinja").write_text(tiny.CHATML)
    said = cli(
        "train",
        "-m",
        model,
        "-f",
        chats,
        "--lora",
        first,
        "--chat-template",
        "third.jinja",
        "-o",
        "a3.gguf",
        *QUICK,
        code=0,
    ).err
    assert template_of("a3.gguf") == tiny.CHATML and "trained with a different chat template" in said
    made = anytune.finetune(
        model,
        chats,
        adapter=first,
        context=64,
        ubatch=64,
        batch=64,
        max_steps=1,
        quiet=True,
        run_dir=str(tmp_path / "r"),
        threads=1,
        device="numpy",
    )
    assert template_of(made.path) == OTHER


@pytest.mark.parametrize(
    "options",
    [
        ["--lora-rank", "8"],
        ["--lora-rank", "16"],
        ["--lora-alpha", "8"],
        ["--lora-modules", "attn_q"],
        ["--rslora"],
        ["--lora-seed", "3"],
    ],
)
def test_options_that_cannot_act_are_refused(first, cli, model, chats, options):
    outcome = cli("train", "-m", model, "-f", chats, "--lora", first, *options, *QUICK, code=2)
    assert (
        re.search(rf"{options[0]} (cannot be combined|has no effect) with --lora", outcome.err)
        and len(outcome.err.splitlines()) == 1
    )


def test_options_that_say_what_the_adapter_is_are_accepted(first, cli, model, chats):
    cli(
        "train",
        "-m",
        model,
        "-f",
        chats,
        "--lora",
        first,
        "--lora-rank",
        "4",
        "--lora-alpha",
        "32",
        "--lora-modules",
        "all",
        "--lora-dropout",
        "0.1",
        "--lora-seed",
        "3",
        "--lora-plus-ratio",
        "2",
        *QUICK,
        code=0,
    )


def test_python_callers_are_told_too(first, model, chats):
    with pytest.raises(UserError, match=r"Lora\(rank=…\) cannot be combined"):
        anytune.finetune(model, chats, adapter=first, lora=anytune.Lora(rank=8), device="numpy", threads=1)


@pytest.fixture
def other(model, tmp_path):
    """The same model with other weights."""
    with GGUF.open(model) as gguf:
        tensors = [(t.name, t.shape, "F32", np.float32(1.01) * gguf.float32(t.name)) for t in gguf.tensors.values()]
        write_gguf(tmp_path / "other.gguf", gguf.metadata, tensors, kinds=gguf.kinds)
    return tmp_path / "other.gguf"


def test_another_base_is_told_by_every_command(cli, model, other, chats, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lora = random_adapter(model, tmp_path / "a.gguf")
    (tmp_path / "t.txt").write_text("the cat sat on the mat, and the rat ran after it\n" * 20)
    commands = [
        ("train", "-f", chats, "-o", "b.gguf", *QUICK),
        ("generate", "-p", "hi", "-n", "1", "-t", "1"),
        ("perplexity", "-f", "t.txt", "-c", "32", "--chunks", "1", "-t", "1"),
        ("evaluate", "compare", "-f", chats, "-n", "2", "--limit", "1", "-o", "r.json", "-t", "1"),
        ("export", "gguf", "-o", "c.gguf", "--no-verify"),
    ]
    for command in commands:
        name, rest = (command[:2], command[2:]) if command[0] in ("evaluate", "export") else (command[:1], command[1:])
        for base, times in ((other, 1), (model, 0)):
            for made in ("b.gguf", "c.gguf", "r.json"):
                (tmp_path / made).unlink(missing_ok=True)
            outcome = cli(*name, "-m", base, "--lora", lora, *rest)
            assert outcome.code == 0, (command, outcome.err)
            assert outcome.err.count("another file") == times, (command, outcome.err)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("Qwen/Qwen3-0.6B", True),
        ("someone/tiny-llama-2b", True),
        ("tiny llama", False),
        ("some/path/to/checkpoint", False),
        (None, False),
    ],
)
def test_a_base_known_by_name_only(model, name, told, tmp_path):
    with GGUF.open(model) as gguf:
        gguf.metadata["general.name"] = "Tiny Llama 1B"
        adapter = anytune.Adapter.load(random_adapter(model, tmp_path / "a.gguf"))
        adapter.base_sha256, adapter.base_name = None, name
        assert (adapter.other_base(gguf) is not None) == told


def test_adapters_of_two_templates_do_not_add_up(cli, model, tmp_path):
    names = []
    for number, template in enumerate((OTHER, tiny.CHATML, None)):
        adapter = anytune.Adapter.load(random_adapter(model, tmp_path / f"{number}.gguf", seed=number))
        adapter.chat_template = template
        adapter.save(tmp_path / f"{number}.gguf")
        names.append(tmp_path / f"{number}.gguf")
    out = ["-m", model, "-o", tmp_path / "sum.gguf", "--no-verify"]
    both = cli("export", "gguf", "--lora", names[0], "--lora", names[1], *out, code=2)
    assert "different chat templates" in both.err
    cli("export", "gguf", "--lora", names[0], "--lora", names[2], *out, code=0)
    assert template_of(tmp_path / "sum.gguf") == OTHER
    assert json.loads(cli("info", tmp_path / "sum.gguf", "--json", code=0).out)
