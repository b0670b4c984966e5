"""Calls, thoughts and ends in templates of every construction: the text that transformers renders, the mask that the
template's author would have tagged, and a name for every word that is not there."""

import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anytune.errors import UserError
from anytune.text import ChatTemplate, Tokenizer, encode_chat
from anytune.text.mask import encode_chat_report
from anytune.text.messages import normalise_all, normalise_tools
from tests.support.require import need
from tests.support.tiny import byte_symbols
from tests.text.conversations import conversations, words_of
from tests.text.test_mask import runs, says, user
from tests.text.tool_templates import ENDS, SPECIAL, TAGGED, plain


def tokenizer_for(name):
    ends = [SPECIAL.index(text) for text in ENDS[name]]
    kinds = [3] * len(SPECIAL) + [1] * 256
    made = Tokenizer(
        {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "qwen2",
            "tokenizer.ggml.tokens": SPECIAL + byte_symbols(),
            "tokenizer.ggml.token_type": np.array(kinds),
            "tokenizer.ggml.merges": [],
            "tokenizer.ggml.bos_token_id": SPECIAL.index("<s>"),
            "tokenizer.ggml.eos_token_id": SPECIAL.index("</s>"),
            "tokenizer.ggml.eot_token_id": ends[0],
        }
    )
    made.eot, made.eog = ends[0], frozenset(ends)
    return made


TOKENIZERS = {name: tokenizer_for(name) for name in TAGGED}
PLAIN = {name: ChatTemplate(plain(source), TOKENIZERS[name]) for name, source in TAGGED.items()}
MARKED = {name: ChatTemplate(source, TOKENIZERS[name]) for name, source in TAGGED.items()}


def reference(source, messages, tools=None, **more):
    """(text, [start, end) of what is between generation tags) as transformers renders."""
    utils = need("transformers.utils.chat_template_utils")
    tagged = "endgeneration" in source
    out, spans = utils.render_jinja_template(
        [messages],
        tools=tools,
        chat_template=source,
        bos_token="<s>",
        eos_token="</s>",
        return_assistant_tokens_mask=tagged,
        **more,
    )
    return out[0], spans[0] if spans else []


def authors(name, text, spans):
    """The runs that the author's tags mark, each with the end of its turn."""
    joined = []
    for a, b in spans:
        if joined and joined[-1][1] == a:
            joined[-1][1] = b
        elif b > a:
            joined.append([a, b])
    ends = tuple(ENDS[name])
    found = []
    for a, b in joined:
        after = next((end for end in ends if text.startswith(end, b)), ends[0])
        found.append(text[a:b] if text[a:b].endswith((*ends, "<|end|>")) else text[a:b] + after)
    return found


@pytest.mark.parametrize("name", TAGGED)
@settings(max_examples=30, deadline=None)
@given(st.data())
def test_random_conversations_are_rendered_learned_or_named(name, data):
    messages, tools = data.draw(conversations())
    template, tokenizer = PLAIN[name], TOKENIZERS[name]
    try:
        found = encode_chat_report(tokenizer, template, messages, tools)
    except UserError as error:
        assert re.search(r"drops|shows nothing of", str(error)), error
        missing = int(re.search(r"message (\d+)", str(error))[1])
        seen = reference(
            plain(TAGGED[name]),
            *template.form_of(messages, tools).apply(normalise_all(messages), normalise_tools(tools)),
        )[0]
        assert any(word not in seen for word in words_of(messages[missing - 1])) or "call" in str(error)
        return
    shown = template.form_of(messages, tools).apply(normalise_all(messages), normalise_tools(tools))
    text, spans = reference(TAGGED[name], *shown)
    assert template.render(messages, tools) == text == MARKED[name].render(messages, tools)
    assert runs(tokenizer, found.ids, found.loss) == authors(name, text, spans)
    tagged = encode_chat_report(tokenizer, MARKED[name], messages, tools)
    assert runs(tokenizer, tagged.ids, tagged.loss) == authors(name, text, spans)
    named = {missing.message for missing in found.left_out}
    for number, message in enumerate(messages, 1):
        assert number in named or all(word in text for word in words_of(message)), (number, text)
    assert 0 in named or all(f"{name}" in text for name in re.findall(r"fun\dx", json.dumps(tools)))


CALL = {"type": "function", "function": {"name": "get", "arguments": {"city": "Köln"}}}
ASKED = [user("weather?"), {"role": "tool", "content": "sun"}, says("Sunny.")]


def asked(**answer):
    return [ASKED[0], {"role": "assistant", **answer}, *ASKED[1:]]


def learned(name, messages, tools=None, **more):
    found = encode_chat_report(TOKENIZERS[name], PLAIN[name], messages, tools, **more)
    return runs(TOKENIZERS[name], found.ids, found.loss)


@pytest.mark.parametrize(
    "calls",
    [
        [CALL],
        [CALL["function"]],
        CALL,
        json.dumps([CALL]),
        [json.dumps(CALL)],
        json.dumps(CALL),
        [{"function": json.dumps(CALL["function"])}],
        [{"function": "get", "arguments": {"city": "Köln"}}],
        [{"function": {"name": "get", "arguments": '{"city": "Köln"}'}}],
        [{"function": {"name": "get", "arguments": json.dumps('{"city": "Köln"}')}}],
    ],
    ids=str,
)
def test_calls_are_read_in_every_form(calls):
    wanted = "<tool_call>get<key>city</key><value>Köln</value></tool_call><|observation|>"
    assert learned("headers", asked(content="", tool_calls=calls)) == [wanted, "Sunny.<|user|>"]


@pytest.mark.parametrize(
    "call", [CALL["function"], json.dumps(CALL["function"]), {"name": "get", "arguments": '{"city": "Köln"}'}], ids=str
)
@pytest.mark.parametrize("content", [None, "", "hm"])
def test_the_older_function_call_is_read_as_a_call(call, content):
    both = [{**asked(content=content, function_call=call, **more)[1]} for more in ({}, {"tool_calls": [CALL]})]
    for message in both:
        first, _ = learned("headers", [ASKED[0], message, *ASKED[1:]])
        assert first == f"{content or ''}<tool_call>get<key>city</key><value>Köln</value></tool_call><|observation|>"


@pytest.mark.parametrize("arguments", ["", " ", "{}", {}, None])
def test_empty_arguments_are_an_empty_object(arguments):
    call = {"function": {"name": "get", "arguments": arguments}}
    assert learned("brackets", asked(tool_calls=[call]))[0] == '[CALLS][{"name": "get", "arguments": {}}]</s>'
    assert learned("nulled", asked(tool_calls=[call]))[0] == "<|call|>function<|sep|>get\n```json\n{}\n```</s>"


@pytest.mark.parametrize(
    "call, message",
    [
        ({"function": {"name": "get", "arguments": '{"city": "Rom'}}, "Message 2: the arguments of the call of 'get'"),
        ({"function": {"arguments": {}}}, "Message 2: A tool call must name its function"),
        ("get()", "Message 2: A tool call must be an object"),
        (7, "Message 2: A tool call must be an object"),
    ],
)
def test_broken_calls_are_refused_with_their_message(call, message):
    with pytest.raises(UserError, match=message):
        learned("headers", asked(content="", tool_calls=[call]))


def test_code_is_an_argument_as_it_is():
    call = {"function": {"name": "python", "arguments": "print(1)"}}
    assert learned("nulled", asked(content=None, tool_calls=[call]))[0].count("```json\nprint(1)\n```") == 1


@pytest.mark.parametrize(
    "form",
    [
        list,
        json.dumps,
        lambda tools: [json.dumps(tool) for tool in tools],
        lambda tools: [json.dumps(tools)],
        lambda tools: tools[0],
    ],
)
def test_tools_are_read_in_every_form(form):
    tools = [{"type": "function", "function": {"name": "get", "description": "é"}}]
    text = PLAIN["headers"].render([ASKED[0], says("no")], form(tools))
    shown = '{"type": "function", "function": {"name": "get", "description": "é"}}'
    assert text.startswith(f"<|begin|><|system|>\n{shown}\n")
    for wrong in ([7], "get", ["get"]):
        with pytest.raises(UserError, match="tools must be"):
            PLAIN["headers"].render([ASKED[0], says("no")], wrong)


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking", "thought", "thoughts"])
@pytest.mark.parametrize(
    "name, wanted",
    [
        ("headers", "hm</think>yes<|user|>"),
        ("opened", "hm\n</think>\n\nyes<|im_end|>"),
        (
            "channels",
            "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>yes<|return|>",
        ),
        ("inline", "<thought>\nhm\n</thought>yes<|im_end|>"),
    ],
)
def test_thoughts_reach_a_template_under_its_own_key(key, name, wanted):
    messages = [user("q"), says("yes", **{key: "hm"})]
    assert learned(name, messages) == [wanted]
    if key in ("reasoning_content", "reasoning", "thinking") and name != "inline":
        assert PLAIN[name].render(messages) == reference(plain(TAGGED[name]), messages)[0]


def test_parts_that_are_thoughts_are_thoughts():
    parts = [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "yes"}]
    assert learned("headers", [user("q"), says(parts)]) == ["hm</think>yes<|user|>"]


def test_an_empty_thought_is_not_learned_before_words_or_calls():
    for more in ({}, {"reasoning_content": ""}):
        assert learned("opened", [user("q"), says("yes", **more)]) == ["yes<|im_end|>"]
        call = (
            "<tool_call>\n<function=get>\n<parameter=city>\nKöln\n</parameter>\n</function>\n</tool_call>\n<|im_end|>"
        )
        assert learned("opened", asked(content="", tool_calls=[CALL], **more)) == [call, "Sunny.<|im_end|>"]


def test_the_end_of_a_turn_that_only_the_next_header_ends():
    """Learned in the middle and at the end, also where every word is; the text of a prompt does not change."""
    messages = [user("a"), says("one"), user("b"), says("two")]
    assert learned("headers", messages) == ["one<|user|>", "two<|user|>"]
    (every,) = learned("headers", messages, whole=True)
    assert every.endswith("</think>two<|user|>") and every.count("<|user|>") == 3
    unknown = tokenizer_for("headers")  # a vocabulary that does not know the header for an end
    unknown.eot, unknown.eog = None, frozenset([unknown.eos])
    ids, loss = encode_chat(unknown, PLAIN["headers"], messages)
    assert runs(unknown, ids, loss) == ["one</s>", "two</s>"]


@pytest.mark.parametrize(
    "source",
    [
        "{{ m.content[:3] }}",
        "{{ m.content | upper }}",
        "{{ m.content | replace('n', 'N') }}",
        "{% if m.content[0] == 'n' %}{{ m.content }}{% endif %}",
    ],
)
def test_words_that_a_template_rewrites_are_found_where_they_were(source):
    template = ChatTemplate(
        "{% for m in messages %}[{{ m.role }}]{% if m.role == 'user' %}{{ m.content }}{% else %}"
        + source
        + "{% endif %}<|im_end|>{% endfor %}{% if add_generation_prompt %}[assistant]"
        "{% endif %}",
        TOKENIZERS["opened"],
    )
    ids, loss = encode_chat(TOKENIZERS["opened"], template, [user("no"), says("nono"), user("no"), says("none")])
    shown = [template.render([user("x"), says(words)]).split("]")[2] for words in ("nono", "none")]
    assert runs(TOKENIZERS["opened"], ids, loss) == shown


def test_a_key_twice_in_arguments_is_refused():
    from anytune.text.messages import arguments_object

    with pytest.raises(UserError, match="have a duplicate key"):
        arguments_object({"name": "f", "arguments": '{"a": 1, "a": 2}'}, 2)


def test_thoughts_are_text_or_parts_of_it():
    said = {"role": "assistant", "content": "b"}
    parts = normalise_all([{**said, "reasoning": [{"type": "text", "text": "hm"}, " so"]}])[0]
    assert parts["reasoning"] == "hm so" and "thinking" not in normalise_all([{**said, "thinking": True}])[0]
    for value in (5, {"effort": "high"}, [{"type": "image"}]):
        with pytest.raises(UserError, match="'reasoning_content' must be text, not"):
            normalise_all([{**said, "reasoning_content": value}])
