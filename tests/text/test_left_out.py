"""What a template leaves out is told, or refused where it is what is to be learned; what is not to be learned is not,
with generation tags too."""

import json

import pytest

from anytune.errors import UserError
from anytune.text import ChatTemplate, build_dataset
from anytune.text.mask import encode_chat_report
from tests.text.templates import CHATML, MARKED, MISTRAL, QWEN3, SMOLLM2
from tests.text.test_mask import PLAIN, runs, says, user

SYSTEM = {"role": "system", "content": "Be brief."}
CALL = says("", tool_calls=[{"function": {"name": "get", "arguments": {}}}])
TOOLS = [{"type": "function", "function": {"name": "get"}}]
ONLY_TURNS = (
    "{% for m in messages %}{% if m.role in ('user', 'assistant') %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "<|im_end|>{% endif %}{% endfor %}"
)
FIRST_SYSTEM = (
    "{% for m in messages %}{% if m.role != 'system' or loop.first %}<|im_start|>{{ m.role }}\n"
    "{{ m.content }}<|im_end|>{% endif %}{% endfor %}"
)


def notes(tmp_path, source, *rows, **options):
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps(row if isinstance(row, dict) else {"messages": row}) + "\n" for row in rows))
    data = build_dataset(path, PLAIN, ChatTemplate(source, PLAIN, origin="file"), context=512, **options)
    return [note for note in data.report["notes"] if "drops" in note]


@pytest.mark.parametrize("loss", ["auto", "all"])
@pytest.mark.parametrize(
    "source, messages, told",
    [
        (CHATML, [SYSTEM, user("a"), says("b")], None),
        (ONLY_TURNS, [SYSTEM, user("a"), says("b")], "1 system message (first: d.jsonl line 1, message 1)"),
        (ONLY_TURNS, [{"role": "developer", "content": "x"}, user("a"), says("b")], "1 developer message"),
        (
            FIRST_SYSTEM,
            [SYSTEM, user("a"), says("b"), {**SYSTEM, "content": "Be long."}, user("a"), says("b")],
            "1 system message (first: d.jsonl line 1, message 4)",
        ),
        (MISTRAL, [SYSTEM, user("a"), says("b")], "1 system message that appears in its prompts"),
        (ONLY_TURNS, [user("a"), {"role": "tool", "content": "5"}, says("b")], "1 tool result"),
        (CHATML, [user("a"), says("b", reasoning_content="hm")], "the reasoning of 1 assistant message"),
        (
            QWEN3,
            [user("a"), says("b", reasoning_content="hm"), user("c"), says("d", reasoning_content="ha")],
            "the reasoning of 1 assistant message (first: d.jsonl line 1, message 2)",
        ),
        (
            QWEN3,
            [user("a"), says("<think>\nhm\n</think>\n\nb"), user("c"), says("d")],
            "the reasoning of 1 assistant message",
        ),
        (
            CHATML,
            [user("a"), {**CALL, "weight": 0}, {"role": "tool", "content": "5"}, says("b")],
            "the calls of 1 assistant message that is not learned",
        ),
    ],
)
def test_what_a_template_leaves_out_is_told(tmp_path, source, messages, told, loss):
    found = notes(tmp_path, source, messages, loss=loss)
    assert len(found) == (told is not None) and all(told in note for note in found)


def test_what_is_left_out_is_counted_over_the_whole_data(tmp_path):
    thinking = [user("a"), says("b", reasoning_content="hm")]
    rows = [[user("a"), says("b")], thinking, [SYSTEM, *thinking], {"messages": thinking, "tools": TOOLS}]
    assert notes(tmp_path, ONLY_TURNS, *rows) == [
        "The chat template drops the reasoning of 3 assistant messages, 1 system message and the tools of 1 "
        "conversation (first: d.jsonl line 2, message 2); nothing is learned from what it drops."
    ]


@pytest.mark.parametrize("loss", ["auto", "all"])
@pytest.mark.parametrize(
    "source, messages, message",
    [
        ("### Question\n{question}", [user("a"), says("b")], "content of message 1, a user's"),
        (
            "{% for m in messages %}{{ m.role }}{% endfor %}",
            [SYSTEM, user("a"), says("b")],
            "content of message 2, a user's",
        ),
        (
            "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}",
            [user("x"), says("y")],
            "content of message 2, an assistant's",
        ),
        (SMOLLM2, [user("a"), CALL, {"role": "tool", "content": "5"}, says("b")], "call of 'get' .message 2."),
        (CHATML, [user("a"), {**CALL, "content": "hm"}, says("b")], "call of 'get' beside its content .message 2."),
        (CHATML, [user("a"), says("", reasoning_content="hm")], "nothing of message 2, an assistant's, which has only"),
        (
            "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.name }}{% endfor %}"
            "{% endfor %}",
            [user("a"), says("b", tool_calls=[{"function": {"name": "get", "arguments": {"city": "Rom"}}}])],
            "the arguments of a call .message 2.",
        ),
    ],
)
def test_what_is_to_be_learned_must_be_shown(tmp_path, source, messages, message, loss):
    with pytest.raises(UserError, match=f"d.jsonl, line 1: The chat template .*{message}"):
        notes(tmp_path, source, messages, loss=loss)


def test_a_template_for_no_tools_says_so(tmp_path):
    with pytest.raises(UserError, match="call of 'get' .message 2., and the tools: use a template for tools"):
        notes(tmp_path, SMOLLM2, {"messages": [user("a"), CALL], "tools": TOOLS})


TURNS = [user("a"), says("one"), user("b"), says("two"), user("c"), says("three")]


def learned(source, messages, **more):
    found = encode_chat_report(PLAIN, ChatTemplate(source, PLAIN), messages, **more)
    return runs(PLAIN, found.ids, found.loss)


@pytest.mark.parametrize("source", [CHATML, MARKED])
def test_what_is_not_to_be_learned_is_not_with_and_without_tags(source):
    assert learned(source, TURNS, learn_from=3) == ["two<|im_end|>", "three<|im_end|>"]
    for off in ({"weight": 0}, {"weight": 0.0}, {"weight": "0"}, {"train": False}, {"train": "false"}, {"train": 0}):
        messages = [*TURNS[:3], {**TURNS[3], **off}, *TURNS[4:]]
        assert learned(source, messages) == ["one<|im_end|>", "three<|im_end|>"]
    for on in ({"weight": 1}, {"weight": "1"}, {"weight": None}, {"train": True}, {"train": "True"}):
        assert len(learned(source, [{**message, **on} for message in TURNS])) == 3
    silent = [user("a"), says(""), user("b"), says("two")]
    assert learned(source, silent, learn_from=2) == ["two<|im_end|>"]
    assert learned(source, silent) == ["<|im_end|>", "two<|im_end|>"]


@pytest.mark.parametrize("wrong", [{"weight": 0.5}, {"weight": "much"}, {"weight": [1]}, {"train": 2}, {"train": "no"}])
def test_a_weight_that_means_nothing_is_refused(wrong):
    with pytest.raises(UserError, match="Message 2: '(weight|train)' must be"):
        learned(CHATML, [TURNS[0], {**TURNS[1], **wrong}])


def test_tags_around_several_messages_are_learned_whole_or_refused():
    source = "{% generation %}{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}{% endgeneration %}"
    with pytest.raises(UserError, match="enclose several messages"):
        learned(source, TURNS)


def test_calls_outside_the_tags_are_refused():
    source = MARKED.replace(
        "{% endgeneration %}", "{% endgeneration %}{% for c in m.tool_calls or [] %}{{ c.function.name }}{% endfor %}"
    )
    with pytest.raises(UserError, match="call of 'get' from its generation tags"):
        learned(source, [user("a"), {**CALL, "content": "x"}])


def test_a_template_begins_where_its_text_does(tmp_path):
    path = tmp_path / "t.jinja"
    path.write_text(CHATML, "utf-8-sig")
    assert ChatTemplate.for_model(None, None, file=path).source == CHATML == ChatTemplate("\ufeff" + CHATML).source


def test_a_broken_template_of_the_model_is_of_no_matter_to_plain_text(tmp_path):
    class File:
        metadata = {"tokenizer.chat_template": "{% for m in messages %}{{ m.content "}

    template = ChatTemplate.for_model(File, PLAIN)
    path = tmp_path / "t.txt"
    path.write_text("some words\n")
    assert len(build_dataset(path, PLAIN, template, context=32)) == 1
    with pytest.raises(UserError, match="model's own chat template cannot be used: .*line 1.*--chat-template"):
        template.render(TURNS)
    path = tmp_path / "t.jinja"
    path.write_text(File.metadata["tokenizer.chat_template"])
    with pytest.raises(UserError, match="not valid Jinja"):
        ChatTemplate.for_model(File, PLAIN, file=path)
