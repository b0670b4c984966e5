"""Calls are read back as the template writes them, whatever its form; what is no call stays text."""

import json

import pytest

from anytune.errors import UserError
from anytune.serve.calls import Call, CallForm, form_of
from anytune.serve.tooling import Tooling, chosen
from anytune.text import ChatTemplate
from tests.support.require import need
from tests.text.test_calls import TOKENIZERS
from tests.text.tool_templates import TAGGED, plain

TOOLS = "{%- for t in tools or [] %}{{ t | tojson }}{%- endfor %}"
LOOP = (
    TOOLS + "{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' + (m.content or '') }}"
    "{%- for c in m.tool_calls or [] %}CALL{%- endfor %}{{ '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{%- endif %}"
)
TEMPLATES = {name: plain(source) for name, source in TAGGED.items()} | {
    "hermes": LOOP.replace(
        "CALL",
        '{{ \'\n<tool_call>\n{"name": "\' + c.function.name + \'", "arguments": \' }}{{ c.function.arguments | '
        "tojson }}{{ '}\n</tool_call>' }}",
    ),
    "llama3": LOOP.replace(
        "CALL",
        "{{ '{\"name\": \"' + c.function.name + '\", \"parameters\": ' }}{{ c.function.arguments | tojson }}{{ '}' }}",
    ),
    "named": LOOP.replace(
        "CALL", "{{ '[TOOL_CALLS]' + c.function.name + '[ARGS]' }}{{ c.function.arguments | tojson }}"
    ),
}
WANTED = [Call("look_up", {"where": "Rome, <Italy> {here}", "days": 3}), Call("stop", {"why": "enough"})]


def calls(count):
    return [
        {"type": "function", "id": f"call{n:05d}", "function": {"name": call.name, "arguments": call.arguments}}
        for n, call in enumerate(WANTED[:count])
    ]


def speech(template, message):
    """What the template makes of the model's own turn."""
    asked = [{"role": "user", "content": "x"}]
    tools = [
        {
            "type": "function",
            "function": {
                "name": call.name,
                "description": "d",
                "parameters": {"type": "object", "properties": {key: {} for key in call.arguments}},
            },
        }
        for call in WANTED
    ]
    before = template.render(asked, tools, add_generation_prompt=True)
    whole = template.render([*asked, message], tools)
    n = next((i for i, (a, b) in enumerate(zip(before, whole)) if a != b), min(len(before), len(whole)))
    return whole[whole.rfind("<", 0, n) if whole.rfind("<", 0, n) > whole.rfind(">", 0, n) else n :]


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("name", TEMPLATES)
def test_what_a_template_writes_is_read_back(name, count):
    template = ChatTemplate(TEMPLATES[name], TOKENIZERS.get(name))
    form = form_of(template.render)
    assert form is not None, name
    if count == 2 and name in ("channels",):  # this template writes one call a turn
        return
    written = speech(template, {"role": "assistant", "content": "", "tool_calls": calls(count)})
    for end in ("<|im_end|>", "</s>", "<|call|>", "<|done|>"):
        written = written.removesuffix("\n").removesuffix(end)
    words, found = form.parse(written)
    assert found == WANTED[:count], (name, form, written)
    assert not words.strip() or name in ("opened", "headers", "inline"), words


@pytest.mark.parametrize("name", TEMPLATES)
def test_plain_words_are_no_call(name):
    form = form_of(ChatTemplate(TEMPLATES[name], TOKENIZERS.get(name)).render)
    for text in ("It is sunny.", "", "a { b", form.opening, f"well {form.opening} x", f'{form.opening}{{"name": 3}}'):
        assert form.parse(text) == (text, []), text


def test_a_template_without_tools_is_told_in_words():
    template = ChatTemplate("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    tooling = Tooling.of(template)
    assert not tooling.shown and not tooling.told
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    said = tooling.messages(
        [
            {"role": "user", "content": "x"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"function": {"name": "f", "arguments": '{"a": 1}'}}],
            },
            {"role": "tool", "content": "done"},
        ],
        [tool],
    )
    text = template.render(said)
    assert '"name": "f"' in text and '<tool_call>\n{"name": "f", "arguments": {"a": 1}}' in text
    assert "<tool_response>\ndone" in text
    assert tooling.form.parse('so:\n<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>') == (
        "so:",
        [Call("f", {"a": 1})],
    )


def test_parts_of_text_are_words_for_a_template_without_tools():
    tooling = Tooling.of(ChatTemplate("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"))

    def parts(text):
        return [{"type": "text", "text": text}]

    call = {"type": "function", "function": {"name": "f", "arguments": "{}"}}
    system, spoken, result = tooling.messages(
        [
            {"role": "system", "content": parts("Be kind.")},
            {"role": "assistant", "content": parts("So:"), "tool_calls": [call]},
            {"role": "tool", "content": parts("5")},
        ],
        [call],
    )
    assert system["content"].startswith("Be kind.\n\nYou may call") and spoken["content"].startswith("So:\n<tool_call>")
    assert result == {"role": "user", "content": "<tool_response>\n5\n</tool_response>"}


@pytest.mark.parametrize("calls", [5, ["f"], [{"function": 5}], [{"function": {"arguments": "{}"}}], "f"])
def test_calls_that_are_none_are_refused(calls):
    tooling = Tooling.of(ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}"))
    with pytest.raises(UserError, match="[Tt]ool.call"):
        tooling.messages([{"role": "assistant", "content": None, "tool_calls": calls}], None)


def test_arguments_that_nest_deeply_stay_text():
    tooling = Tooling.of(ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}"))
    call = {"type": "function", "function": {"name": "f", "arguments": "[" * 100_000}}
    (made,) = tooling.messages([{"role": "assistant", "content": None, "tool_calls": [call]}], None)
    assert "[" * 100_000 in made["content"]


@pytest.mark.parametrize(
    "parameters, refused",
    [
        ({"properties": {"a": True}}, False),
        ({"properties": {"a": 5}}, False),
        ({"properties": ["a"]}, True),
        ({"properties": {"a": {}}, "required": 5}, True),
    ],
)
def test_parameters_that_are_no_schema_end_in_a_sentence(parameters, refused):
    name = next(name for name in TEMPLATES if Tooling.of(ChatTemplate(TEMPLATES[name])).form.parts)
    tooling, tokenizer = Tooling.of(ChatTemplate(TEMPLATES[name])), TOKENIZERS["opened"]
    tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    if not refused:
        assert tooling.grammar(tools, tokenizer)
        return
    with pytest.raises(UserError, match="The parameters of 'f'"):
        tooling.grammar(tools, tokenizer)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_grammar_accepts_what_the_template_writes(name):
    """Token by token, and nothing of another name."""
    need("llguidance")
    from anytune.serve.grammar import Grammars

    tokenizer = TOKENIZERS.get(name) or TOKENIZERS["opened"]
    template = ChatTemplate(TEMPLATES[name], tokenizer)
    tooling = Tooling.of(template)
    function = {
        "name": "look_up",
        "parameters": {
            "type": "object",
            "required": ["where", "days"],
            "properties": {"where": {"type": "string"}, "days": {"type": "integer"}},
            "additionalProperties": False,
        },
    }
    grammars = Grammars(tokenizer, tokenizer.size)
    grammar = tooling.grammar([{"type": "function", "function": function}], tokenizer)
    form, arguments = tooling.form, {"where": "Rome", "days": 3}
    inner = (
        json.dumps({form.keys[0]: "look_up", form.keys[1]: arguments})
        if form.keys
        else "look_up"
        + form.middle
        + (
            json.dumps(arguments)
            if form.parts is None
            else "".join(
                form.parts[0] + key + form.parts[1] + str(value) + form.parts[2] for key, value in arguments.items()
            )
        )
    )
    text = form.opening.lstrip() + inner + form.closing.rstrip()
    matcher = grammars.matcher(grammar)
    for token in tokenizer.encode(text, special=True, bos=False):
        matcher.accept(token)
    assert matcher.made.is_accepting()
    assert form.parse(text)[1] == [Call("look_up", arguments)]


def test_which_tools_must_be_called():
    tools = [{"function": {"name": name}} for name in "ab"]
    assert chosen(tools, None) is chosen(tools, "auto") is None and chosen(tools, "required") == tools
    assert chosen(tools, {"type": "function", "function": {"name": "b"}}) == tools[1:]
    with pytest.raises(Exception, match="'c'.*a, b"):
        chosen(tools, {"type": "function", "function": {"name": "c"}})
    assert CallForm("", "", keys=("name", "parameters")).parse('{"name": "a", "parameters": {}}')[1] == [Call("a", {})]
