"""What is learned: the assistant's words and the token that ends them, in every kind of template; nothing else."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anytune.errors import UserError
from anytune.gguf import GGUF
from anytune.text import ChatTemplate, Tokenizer, encode_chat
from tests.support.models import gemma3, smollm2
from tests.support.require import need
from tests.support.tiny import byte_symbols
from tests.text.llamacpp_vocab import Peer
from tests.text.templates import ALL, SPECIAL

BOS_MODELS = ("llama3", "gemma3")
END = {
    "chatml": "<|im_end|>",
    "smollm2": "<|im_end|>",
    "qwen2.5": "<|im_end|>",
    "qwen3": "<|im_end|>",
    "llama3": "<|eot_id|>",
    "gemma3": "<end_of_turn>",
    "mistral": "</s>",
    "phi3": "<|end|>",
    "alpaca": "<|eot_id|>",  # the vocabulary's: the template has none
    "marked": "<|im_end|>",
}


def a_tokenizer(pre="qwen2"):
    count = len(SPECIAL)
    return Tokenizer(
        {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": pre,
            "tokenizer.ggml.tokens": SPECIAL + byte_symbols(),
            "tokenizer.ggml.token_type": np.array([3] * count + [1] * 256),
            "tokenizer.ggml.merges": [],
            "tokenizer.ggml.bos_token_id": SPECIAL.index("<s>"),
            "tokenizer.ggml.eos_token_id": SPECIAL.index("</s>"),
        }
    )


PLAIN, WITH_BOS = a_tokenizer(), a_tokenizer("llama-bpe")


def setup(name):
    tokenizer = WITH_BOS if name in BOS_MODELS else PLAIN
    return tokenizer, ChatTemplate(ALL[name], tokenizer)


def runs(tokenizer, ids, loss):
    """The texts of the runs of learned tokens."""
    out, open_ = [], False
    for token, on in zip(ids, loss, strict=True):
        if on:
            out.append(b"") if not open_ else None
            out[-1] += tokenizer.piece(token)
        open_ = on
    return [text.decode() for text in out]


def user(text):
    return {"role": "user", "content": text}


def says(text, **more):
    return {"role": "assistant", "content": text, **more}


@pytest.mark.parametrize("name", ALL)
def test_turns_are_learned_with_their_end_and_nothing_else(name):
    tokenizer, template = setup(name)
    for system in ([], [{"role": "system", "content": "Hello!"}]):
        messages = [*system, user("Hello!"), says("Hello!"), user("Hello! assistant\nBye"), says("Bye.")]
        ids, loss = encode_chat(tokenizer, template, messages)
        assert [text.removeprefix(" ") for text in runs(tokenizer, ids, loss)] == [
            "Hello!" + END[name],
            "Bye." + END[name],
        ]
        text = template.render(messages)
        shown = tokenizer.decode(ids, skip_special=False)
        if name == "alpaca":
            shown, ids = shown.replace(END[name], ""), [i for i in ids if tokenizer.piece(i).decode() != END[name]]
        assert shown == text  # the ids are those of the whole text
        assert ids == tokenizer.encode(text, special=True, bos=False)  # and BOS is there once at most
        assert ids.count(tokenizer.bos) == text.count("<s>") and not loss[0]


words = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cs", "Cc", "Zs", "Zl", "Zp"]), min_size=1, max_size=12
).filter(lambda s: not set(s) & set("<>|[]") and s.strip() == s)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([n for n in ALL if n != "alpaca"]),
    st.lists(words, min_size=2, max_size=8).filter(lambda w: len(w) % 2 == 0),
)
def test_any_words_are_found_again(name, texts):
    tokenizer, template = setup(name)
    messages = [(user, says)[k % 2](text) for k, text in enumerate(texts)]
    ids, loss = encode_chat(tokenizer, template, messages)
    learned = [text.removeprefix(" ") for text in runs(tokenizer, ids, loss)]
    assert learned == [text + END[name] for text in texts[1::2]]


@pytest.mark.parametrize("name", ALL)
def test_words_that_the_template_says_too_are_found_again(name):
    """An answer "n" is in <think> and in <|im_end|>; a short question, too; and thoughts end in what the answer is."""
    tokenizer, template = setup(name)
    text = template.render([user("Q"), says("A"), user("Q"), says("A")])
    pieces = {text[at : at + size] for at in range(len(text)) for size in (1, 2, 5)} - set(SPECIAL)
    for piece in sorted(p for p in pieces if p and p.strip() == p):
        thought = "hm, " + piece
        for messages in (
            [user("Q"), says(piece)],
            [user("Q"), says(piece), user(piece), says(piece)],
            [user("Q"), says(piece, reasoning_content=thought)],
            [user("Q"), says(f"<think>\n{thought}\n</think>\n\n{piece}")],
        ):
            learned = runs(tokenizer, *encode_chat(tokenizer, template, messages))
            told = messages[-1].get("reasoning_content") and name == "qwen3"  # the only one that shows them
            first = f"<think>\n{thought}\n</think>\n\n" if told else ""
            said = [message["content"] for message in messages if message["role"] == "assistant"]
            assert [t.removeprefix(" ") for t in learned] == [first + words + END[name] for words in said]


def test_empty_thoughts_are_not_learned_and_real_ones_are():
    tokenizer, template = setup("qwen3")
    ids, loss = encode_chat(tokenizer, template, [user("Q"), says("A")])
    assert "<think>\n\n</think>\n\nA" in tokenizer.decode(ids, False) and runs(tokenizer, ids, loss) == ["A<|im_end|>"]
    for answer in (says("A", reasoning_content="hm"), says("<think>\nhm\n</think>\n\nA")):
        ids, loss = encode_chat(tokenizer, template, [user("Q"), answer])
        assert runs(tokenizer, ids, loss) == ["<think>\nhm\n</think>\n\nA<|im_end|>"]


def test_thoughts_that_a_template_takes_away_do_not_shift_the_mask():
    tokenizer, template = setup("qwen3")
    call = says("", reasoning_content="need it", tool_calls=[{"function": {"name": "get", "arguments": "{}"}}])
    messages = [
        user("Q1"),
        call,
        {"role": "tool", "content": "A1"},
        says("<think>\nhm\n</think>\n\nA1"),
        user("A1"),
        says("A1"),
    ]
    ids, loss = encode_chat(tokenizer, template, messages)
    assert "need it" not in tokenizer.decode(ids) and "hm" not in tokenizer.decode(ids)
    assert runs(tokenizer, ids, loss) == [
        '\n<tool_call>\n{"name": "get", "arguments": {}}\n</tool_call><|im_end|>',
        "A1<|im_end|>",
        "A1<|im_end|>",
    ]


@pytest.mark.parametrize("name", ["qwen2.5", "qwen3", "llama3"])
def test_calls_are_learned_and_tool_answers_are_not(name):
    tokenizer, template = setup(name)
    call = says(None, tool_calls=[{"type": "function", "function": {"name": "get", "arguments": '{"city": "Rom"}'}}])
    messages = [user("Weather?"), call, {"role": "tool", "content": "sun"}, says("Sunny.")]
    ids, loss = encode_chat(tokenizer, template, messages, tools=[{"type": "function", "function": {"name": "get"}}])
    first, second = runs(tokenizer, ids, loss)
    assert '"get"' in first and '"Rom"' in first and "sun" not in first and first.endswith(END[name])
    assert second == "Sunny." + END[name]


@pytest.mark.parametrize("name", ["chatml", "phi3", "alpaca", "marked"])
def test_a_template_that_leaves_calls_out_is_refused(name):
    tokenizer, template = setup(name)
    call = says("", tool_calls=[{"function": {"name": "get", "arguments": {}}}])
    with pytest.raises(UserError, match="'get'"):
        encode_chat(tokenizer, template, [user("x"), call])


def test_a_conversation_that_the_assistant_begins():
    tokenizer, template = setup("smollm2")  # which puts a system message in front of it
    messages = [says("Hi!"), user("a"), says("one"), says("two")]
    learned = runs(tokenizer, *encode_chat(tokenizer, template, messages))
    assert learned == ["Hi!<|im_end|>", "one<|im_end|>", "two<|im_end|>"]


def test_generation_marks_decide_where_there_are_any():
    source = (
        "{% for m in messages %}{{ m.role }}:{% if m.role == 'assistant' %}{% generation %}{{ m.content[:2] }}"
        "{% endgeneration %}<|im_end|>{% else %}{{ m.content }}{% endif %}\n{% endfor %}"
    )
    ids, loss = encode_chat(PLAIN, ChatTemplate(source, PLAIN), [user("abc"), says("abc"), user("ab"), says("xyz")])
    assert runs(PLAIN, ids, loss) == ["ab<|im_end|>", "xy<|im_end|>"]


def test_some_turns_can_be_left_out():
    tokenizer, template = setup("chatml")
    messages = [user("a"), says("one"), user("b"), says("two", weight=0), user("c"), says("three")]
    assert runs(tokenizer, *encode_chat(tokenizer, template, messages)) == ["one<|im_end|>", "three<|im_end|>"]
    assert runs(tokenizer, *encode_chat(tokenizer, template, messages, learn_from=2)) == ["three<|im_end|>"]


@pytest.mark.parametrize(
    "name, messages, message",
    [
        ("chatml", [user("x")], "no assistant"),
        ("gemma3", [user("a"), user("b"), says("c")], "alternate"),
        ("chatml", [{"content": "x"}], "role"),
        ("llama3", [user("a"), says("", tool_calls=[{"function": {"name": "get"}}] * 2)], "one call"),
    ],
)
def test_what_cannot_be_learned_is_an_error(name, messages, message):
    with pytest.raises(UserError, match=message):
        encode_chat(*setup(name), messages)


def test_a_template_that_hides_the_assistant_is_an_error():
    source = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}"
    with pytest.raises(UserError, match="assistant"):
        encode_chat(PLAIN, ChatTemplate(source, PLAIN), [user("x"), says("y")])


@pytest.mark.parametrize("path, name", [(smollm2, None), (gemma3, "gemma3"), (gemma3, "mistral")])
def test_real_tokenizers_see_the_rendered_text_as_llamacpp_does(path, name):
    """Ids equal llama.cpp's for the whole text; what is learned covers the words, also where tokens span the edge."""
    need("xllamacpp")
    with GGUF.open(path()) as gguf, Peer(path()) as peer:
        tokenizer = Tokenizer.from_gguf(gguf)
        template = ChatTemplate(ALL[name], tokenizer) if name else ChatTemplate.for_model(gguf, tokenizer)
        messages = [user("Was ist 2+2? 🙂"), says("  Vier — 四.\n\n\tOK  "), user("ok"), says("Tschüß")]
        ids, loss = encode_chat(tokenizer, template, messages)
        text = template.render(messages)
        bos = "<bos>" if tokenizer.add_bos else ""
        assert [ids] == peer.encode([text.removeprefix(bos)], special=True, add=True)
        learned = runs(tokenizer, ids, loss)
        assert "Vier — 四.\n\n\tOK" in learned[0] and "Tschüß" in learned[1] and len(learned) == 2
        assert "Was" not in learned[0] and "model" not in learned[0] and "user" not in learned[0]
