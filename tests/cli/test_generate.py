"""generate and chat on a tiny model, against its logits and against each other."""

import io
import signal
import sys

import numpy as np
import pytest

import anytune
from anytune.cli.chat import _answer
from anytune.generation.conversation import Conversation
from anytune.generation.prompts import prompt_ids
from anytune.generation.sampling import Sampling
from anytune.signals import Terminated, interrupt

GREEDY = Sampling(temperature=0)


@pytest.fixture(scope="module")
def loaded(model):
    return anytune.load(model, threads=1)


def greedy(loaded, ids, n):
    """The n likeliest tokens one after another, each from the logits of the whole text."""
    ids = list(ids)
    for _ in range(n):
        ids.append(int(np.argmax(loaded.logits(ids)[-1])))
        if ids[-1] in loaded.tokenizer.eog:
            break
    return ids


def test_greedy_text_is_that_of_the_logits_alone_and_in_a_batch(loaded, model, cli):
    prompts = ["the rain in", "on", "a sea of the worst kind, with waves and then"]
    args = [a for p in prompts for a in ("-p", p)]
    outcome = cli("generate", "-m", model, *args, "--raw", "-n", "9", "--temp", "0", "-t", "1", "--json", code=0)
    for prompt, result in zip(prompts, outcome.json["results"], strict=True):
        ids = loaded.tokenize(prompt, special=True)
        assert ids + result["ids"] == greedy(loaded, ids, 9)
        assert result["prompt_tokens"] == len(ids)
        alone = cli("generate", "-m", model, "-p", prompt, "--raw", "-n", "9", "--temp", "0", "-t", "1", code=0)
        assert alone.out == result["text"] + "\n"


def test_a_prompt_goes_through_the_template_unless_raw_is_asked_for(loaded):
    rendered = "<|im_start|>user\nhello there<|im_end|>\n<|im_start|>assistant\n"
    assert loaded.tokenizer.decode(prompt_ids(loaded, "hello there"), skip_special=False) == rendered
    assert loaded.tokenizer.decode(prompt_ids(loaded, "hello there", chat=False), skip_special=False) == "hello there"
    with_system = prompt_ids(loaded, "hello there", system="be brief")
    assert (
        loaded.tokenizer.decode(with_system, skip_special=False)
        == "<|im_start|>system\nbe brief<|im_end|>\n" + rendered
    )
    assert prompt_ids(loaded, [5, 6, 7]) == [5, 6, 7]
    with pytest.raises(anytune.UserError, match="--raw"):
        prompt_ids(loaded, "x", chat=False, system="y")


def test_python_gives_the_same_as_the_command(loaded, model, cli):
    text = loaded.generate("tell me of the sea", max_tokens=12, temperature=0.9, seed=5)
    assert isinstance(text, str)
    both = loaded.generate(["tell me of the sea", "and more"], max_tokens=12, temperature=0.9, seed=5)
    assert both[0] == text and len(both) == 2
    out = cli("generate", "-m", model, "-p", "tell me of the sea", "-n", "12", "--temp", "0.9", "-s", "5", code=0).out
    assert out == text + "\n"


def test_the_prompt_comes_from_stdin_or_a_file(model, cli, monkeypatch, tmp_path):
    same = ["-m", model, "--raw", "-n", "5", "--temp", "0", "-t", "1"]
    expected = cli("generate", "-p", "the sea", *same, code=0).out
    (tmp_path / "p.txt").write_text("the sea")
    assert cli("generate", "-f", tmp_path / "p.txt", *same, code=0).out == expected
    monkeypatch.setattr(sys, "stdin", io.StringIO("the sea\n"))
    assert cli("generate", *same, code=0).out == expected


def test_an_empty_prompt_file_is_named(model, cli, tmp_path):
    (tmp_path / "p.txt").touch()
    assert "p.txt is empty" in cli("generate", "-m", model, "-f", tmp_path / "p.txt", code=2).err


def test_each_turn_is_what_a_fresh_start_gives_and_only_new_tokens_are_fed(loaded):
    talk = Conversation(loaded, system="be kind", how=GREEDY, max_tokens=6, context=256)
    sizes, feed = [], talk.decoder.feed
    talk.decoder.feed = lambda tokens: sizes.append(len(tokens[0])) or feed(tokens)
    before = 0
    for text in ("one", "two, and the", "three"):
        sizes.clear()
        answer = "".join(talk.say(text))
        fresh = loaded.generate(
            [{"role": "system", "content": "be kind"}, *talk.messages[:-1]], max_tokens=6, temperature=0
        )
        assert answer == fresh == talk.messages[-1]["content"]
        assert sizes[0] <= len(talk.last.prompt) - before  # the last turn's prompt was not fed again
        before = len(talk.last.prompt)
    talk.reset()
    assert talk.messages == [] and talk.system == "be kind"
    assert "".join(talk.say("one")) == loaded.generate(
        [{"role": "system", "content": "be kind"}, {"role": "user", "content": "one"}], max_tokens=6, temperature=0
    )


def test_an_answer_that_is_stopped_is_kept_as_far_as_it_came(loaded):
    values = dict(temperature=1.0, top_k=0, seed=2)
    talk = Conversation(loaded, how=Sampling(**values), max_tokens=40, context=256)
    pieces = talk.say("go on")
    first = next(pieces)
    pieces.close()
    assert talk.messages[-1] == {"role": "assistant", "content": first}
    second = "".join(talk.say("more"))
    assert second == loaded.generate(talk.messages[:-1], max_tokens=40, **values)


def test_a_full_context_forgets_the_oldest_turns_and_says_so(loaded):
    talk = Conversation(loaded, system="be", how=GREEDY, max_tokens=4, context=120)
    for n in range(8):
        "".join(talk.say(f"turn {n}"))
    assert talk.forgotten > 0 and talk.messages[0]["role"] == "user"
    assert len(talk.last.prompt) <= 90
    with pytest.raises(anytune.UserError, match="context holds 120"):
        "".join(talk.say("x y " * 100))
    assert talk.messages[-1]["role"] == "assistant"


def test_chat_over_a_pipe_prints_the_answers_only(loaded, model, cli, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\n\n/reset\ntwo\\\nlines\n/system be odd\nthree\n/exit\nnever\n"))
    outcome = cli("chat", "-m", model, "--temp", "0", "-n", "5", "-t", "1", code=0)
    odd = [{"role": "system", "content": "be odd"}, {"role": "user", "content": "three"}]
    expected = [loaded.generate(p, max_tokens=5, temperature=0) for p in ("one", "two\nlines", odd)]
    assert outcome.out == "".join(text + "\n" for text in expected)
    assert "conversation cleared" in outcome.err


def test_an_adapter_changes_the_text_and_its_template_is_used(loaded, model, cli, tmp_path):
    rng = np.random.default_rng(0)
    pairs = {}
    for name in anytune.Lora().tensors(loaded.gguf, 2):
        out, wide = loaded.gguf.tensors[name].shape
        pairs[name] = (rng.normal(0, 1, (2, wide)).astype(np.float32), rng.normal(0, 1, (out, 2)).astype(np.float32))
    template = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
    adapter = anytune.Adapter(pairs, rank=2, alpha=2.0, chat_template=template)
    assert loaded.tokenizer.decode(prompt_ids(loaded, "hi", adapter=adapter)) == "[hi]"
    adapter.save(tmp_path / "a.gguf")
    with_it = cli(
        "generate", "-m", model, "--lora", tmp_path / "a.gguf", "-p", "hi", "--temp", "0", "-n", "8", code=0
    ).out
    assert with_it == loaded.generate("hi", adapter, max_tokens=8, temperature=0) + "\n"
    assert with_it != loaded.generate("[hi]", max_tokens=8, temperature=0, chat=False) + "\n"


def test_ctrl_c_stops_an_answer_and_a_request_to_end_stops_the_chat(loaded, monkeypatch, capsys):
    talk = Conversation(loaded, max_tokens=50, seed=1)

    def pressed(reason):
        def say(text):
            yield "so far"
            raise reason

        return say

    monkeypatch.setattr(talk, "say", pressed(KeyboardInterrupt))
    _answer(talk, "x", person=True)
    assert "[stopped]" in capsys.readouterr().err
    monkeypatch.setattr(talk, "say", pressed(Terminated))
    with pytest.raises(Terminated):
        _answer(talk, "x", person=True)
    with pytest.raises(Terminated):
        interrupt(signal.SIGTERM, None)
