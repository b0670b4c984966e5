"""Templates render as the field's do, say why they refuse, and cannot be made to hang or eat memory."""

import datetime
import threading
import tracemalloc

import pytest

from anytune.errors import UserError
from anytune.text import meter, sandbox, trace
from anytune.text.chat import ChatTemplate
from anytune.text.forms import Form
from tests.support.require import need
from tests.text import templates

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Yo"},
]
TOOLS = [{"type": "function", "function": {"name": "get", "description": "é <b>", "parameters": {"x": 1}}}]


def reference(source, messages, tools=None, **more):
    """The rendering that transformers does."""
    utils = need("transformers.utils.chat_template_utils")
    out = utils.render_jinja_template([messages], tools=tools, chat_template=source, **more)
    return out[0][0]


@pytest.mark.parametrize("name", templates.ALL)
@pytest.mark.parametrize("prompt", [False, True])
def test_templates_render_as_transformers_does(name, prompt):
    source = templates.ALL[name].replace('strftime_now("%d %b %Y")', 'strftime_now("%Y")')
    special = dict(bos_token="<s>", eos_token="</s>")
    ours = ChatTemplate(source, None)
    ours._env.globals |= special
    for messages in (CHAT, CHAT[1:]):
        assert ours.render(messages, add_generation_prompt=prompt) == reference(
            source, messages, add_generation_prompt=prompt, **special
        )
    if name.startswith("qwen"):
        call = {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"type": "function", "function": {"name": "get", "arguments": {"city": "Köln <&>"}}}],
        }
        messages = [CHAT[1], call, {"role": "tool", "content": "sun"}]
        assert ours.render(messages, TOOLS) == reference(
            source, messages, TOOLS, add_generation_prompt=False, **special
        )


def test_jinja_features_that_templates_use():
    source = (
        "{%- for m in messages if m.role != 'system' -%}{% if loop.last %}{% break %}{% endif %}"
        "{{ loop.index }}/{{ loop.length }}"
        "{%- endfor %}{{ [1, {'a': 'é'}] | tojson }}{{ {'b': 1} | tojson(indent=2) }}{{ strftime_now('%Y-%m-%d') }}"
        "{%- set ns = namespace(n=0) %}{% for i in range(3) %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}"
        "{{ 'a-b'.split('-') | join('+') }}{{ 'x' * 3 }}{{ '%s!' % 'hey' }}{{ ' y '|trim ~ 'z' }}"
        "{{ messages[-1].content[::-1] }}"
        "{{ '{}-{:>4}'.format(1, 2) }}{% macro f(a, b=2) %}{{ a + b }}{% endmacro %}{{ f(1) }}{{ undefined_thing }}"
        "{% set a, b = 1, 2 %}{{ b }}{{ {'k': 'v'}.get('k') }}"
        "{% for k, v in {'q': 1}.items() %}{{ k }}{{ v }}{% endfor %}{{ [1, 2] | map('string') | tojson }}"
    )
    template = ChatTemplate(source, None, today=datetime.datetime(2026, 11, 22))
    assert template.render(CHAT) == '1/2[1, {"a": "é"}]{\n  "b": 1\n}2026-11-223a+bxxxhey!yzoY1-   232vq1["1", "2"]'


def test_arguments_reach_a_template_in_the_form_it_needs():
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": '{"a": 1}'}}]}
    as_object = ChatTemplate("{{ messages[0].tool_calls[0].function.arguments.a }}", None)
    as_text = ChatTemplate("{{ 'call: ' + messages[0].tool_calls[0].function.arguments }}", None)
    assert as_object.render([call]) == "1" and as_text.render([call]) == 'call: {"a": 1}'


def test_parts_of_text_are_joined_and_images_refused():
    template = ChatTemplate("{{ messages[0].content }}", None)
    assert (
        template.render([{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}])
        == "ab"
    )
    with pytest.raises(UserError, match="not text"):
        template.render([{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}])


@pytest.mark.parametrize(
    "source, message",
    [
        ("{{ raise_exception('no tools here') }}", "no tools here"),
        ("{% if %}", "line 1"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.__init__.__globals__ }}", "unsafe"),
        ("{{ x.y.z }}", "'x' is undefined"),
        ("{% include 'x' %}", "not allowed"),
        ("{% import 'x' as y %}", "not allowed"),
        ("{{ messages[0] + 1 }}", "TypeError"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "deeply"),
        ("{% for a in [1] %}" * 30 + "{% endfor %}" * 30, "deeply"),
        ("x" * (sandbox.SOURCE_LIMIT + 1), "characters"),
    ],
)
def test_errors_are_the_users_and_say_why(source, message):
    with pytest.raises(UserError, match=message):
        ChatTemplate(source, None).render(CHAT)


def double(step: str) -> str:
    return (
        "{% set ns = namespace(s='aaaaaaaaaa') %}{% for i in range(99) %}{% set ns.s = "
        + step
        + " %}{% endfor %}{{ ns.s }}"
    )


HOSTILE = [
    "{% for i in range(10**9) %}x{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% for i in range(99999) if range(99999)|list|length < 0 %}{% endfor %}",
    "{{ 'a' * 10**10 }}",
    "{{ [1] * 10**9 }}",
    "{{ 99**99**99**99 }}",
    double("ns.s + ns.s"),
    double("ns.s ~ ns.s"),
    double("[ns.s, ns.s]"),
    double("dict(a=ns.s, b=ns.s)"),
    double("(ns.s, ns.s)"),
    double("ns.s | replace('', 'bb')"),
    double("ns.s.replace('a', 'aa')"),
    double("[ns.s, ns.s] | join"),
    double("'%s%s' % (ns.s, ns.s)"),
    double("'{0}{0}'.format(ns.s)"),
    double("[ns.s] | map('replace', 'a', 'aa') | first"),
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(99) }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
    "{{ '%999999999d' % 1 }}",
    "{{ '%*d' % (10**9, 1) }}",
    "{{ '{:>999999999}'.format(1) }}",
    "{{ '{:{w}}'.format(1, w=10**9) }}",
    "{{ '%999999999d' | format(1) }}",
    "{{ 'a'.ljust(10**9) }}",
    "{{ 'a'.zfill(10**9) }}",
    "{{ 'a'.center(10**9) }}",
    "{{ ('a\n' * 100000) | indent(100000) }}",
    "{{ 'a' | indent(10**9, first=true) }}",
    "{{ messages | tojson(indent=10**9) }}",
    "{% set x %}{% for i in range(99999) %}" + "y" * 9999 + "{% endfor %}{% endset %}",
    "{{ range(99999) | select('in', range(99999) | map('string') | list) | list }}",
    "{{ ','.join(['a' * 100000] * 100000) }}",
    "{% set a = 'x' * 900000 %}{% for i in range(99999) %}{% if a[::2] > a %}{% endif %}{% endfor %}",
    "{{ lipsum(10**9) }}",
    "{{ range(99999) | map('string') | map('replace', '', '" + "x" * 999 + "') | join }}",
    "{{ range(10**8) | list }}",
]


@pytest.mark.parametrize("source", HOSTILE)
def test_hostile_templates_end_soon_and_small(source, monkeypatch):
    monkeypatch.setattr(meter, "SECONDS", 0.3)
    tracemalloc.start()
    try:
        with pytest.raises(UserError):
            ChatTemplate(source, None).render(CHAT)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


def test_a_slow_template_is_not_asked_for_ever(monkeypatch):
    """One that renders just in time, and looks at the words so closely that it would be asked again and again."""
    monkeypatch.setattr(trace, "SECONDS", 0.0)
    template = ChatTemplate("{% for m in messages %}{{ m.content | length }}{% endfor %}", None)
    with pytest.raises(UserError, match="stopped"):
        template.trace(CHAT * 20, None, Form())


def test_limits_work_in_any_thread(monkeypatch):
    monkeypatch.setattr(meter, "SECONDS", 0.2)
    found = []

    def work():
        try:
            ChatTemplate(HOSTILE[1], None).render(CHAT)
        except UserError as error:
            found.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(3)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert len(found) == 3 and all("seconds" in text for text in found)


def test_a_long_but_honest_chat_is_rendered():
    long = [{"role": ("user", "assistant")[i % 2], "content": f"{i} " + "word " * 200} for i in range(1000)]
    for name in ("qwen3", "llama3", "gemma3"):
        assert len(ChatTemplate(templates.ALL[name], None).render(long)) > 1_000_000


def test_fallback_is_chatml_and_says_so(tmp_path):
    class File:
        metadata = {}

    fallback = ChatTemplate.for_model(File, None)
    assert fallback.origin == "chatml" and "ChatML" in fallback.notice
    assert (
        fallback.render(CHAT[1:2], add_generation_prompt=True)
        == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    File.metadata = {"tokenizer.chat_template": "own", "tokenizer.chat_template.tool_use": "for tools"}
    own = ChatTemplate.for_model(File, None)
    assert (own.origin, own.render(CHAT), own.render(CHAT, TOOLS), own.notice) == ("gguf", "own", "for tools", None)
    path = tmp_path / "t.jinja"
    path.write_text("from a file")
    assert ChatTemplate.for_model(File, None, file=path).origin == "file"
    with pytest.raises(UserError, match="cannot be read"):
        ChatTemplate.for_model(File, None, file=tmp_path / "none.jinja")
