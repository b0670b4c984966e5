"""What is served says what was trained: template, tool variant, system prompt and BOS of every export, or a refusal."""

import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import anytune
from anytune.cli.main import run as command
from anytune.errors import UserError
from anytune.export.chat import differences, take_apart
from anytune.export.ollama import go_template, modelfile
from anytune.gguf import GGUF, write_gguf
from anytune.text.chat import ChatTemplate
from anytune.text.mask import encode_chat
from anytune.text.tokenizer import Tokenizer
from tests.export import gotemplate, pairs
from tests.export.test_ollama import KNOWN, conversations
from tests.support import tiny
from tests.support.require import need
from tests.text import templates

LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content + ' [/INST]' }}{% "
    "else %}"
    "{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
)
PHI3 = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
TURNS = (
    "{% for m in messages %}{{ '[' + m.role + '] ' + m.content + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant] ' }}{% endif %}"
)
WITH_TOOLS = "{% for t in tools or [] %}{{ t | tojson }}\n{% endfor %}" + tiny.CHATML
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
ASK = [
    {"role": "system", "content": "Short."},
    {"role": "user", "content": "q"},
    {"role": "assistant", "content": "a"},
    {"role": "user", "content": "r"},
]


def tokenizer_of(tmp_path, add_bos: bool):
    with GGUF.open(tiny.write(tmp_path / "t.gguf", "llama-spm")) as file:
        return Tokenizer(file.metadata | {"tokenizer.ggml.add_bos_token": add_bos})


REGULAR = KNOWN | {"llama2": LLAMA2, "phi3": PHI3, "turns": TURNS}


@pytest.mark.parametrize("add_bos", [True, False])
@pytest.mark.parametrize("name", sorted(REGULAR))
def test_go_says_the_same_with_a_real_tokenizer(tmp_path, name, add_bos):
    """The ids that Ollama feeds: it puts BOS in front of what the template says, as training does, once."""
    tokenizer = tokenizer_of(tmp_path, add_bos)
    template = ChatTemplate(REGULAR[name], tokenizer)
    made = take_apart(template, tokenizer)
    assert made is not None or (name, add_bos) == ("llama2", False)
    for messages in conversations(made is not None and made.system is not None) if made else ():
        wanted = template.render(messages, add_generation_prompt=True)
        bos = "<s>" if add_bos else ""
        assert bos + gotemplate.render(go_template(made), messages) == bos + wanted.removeprefix(bos)


@pytest.mark.parametrize(
    ("source", "told"),
    [
        (TURNS.replace("m.content", "(m.content | trim)"), "whitespace around messages"),
        (
            TURNS.replace("m.content", "(m.content | trim if m.role == 'system' else m.content)"),
            "whitespace around the system",
        ),
        (TURNS.replace("m.content", "m.content.split('</think>')[-1].lstrip('\n')"), "reasoning"),
        (templates.QWEN25, "tools"),
        ("{% set d = strftime_now('%d') %}" + TURNS, "date"),
        (
            TURNS.replace("{{ '['", "{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}{{ '['"),
            "no place for a system message",
        ),
    ],
)
def test_what_go_cannot_say_is_told(tmp_path, source, told):
    template = ChatTemplate(source, tokenizer_of(tmp_path, False))
    made = take_apart(template)
    assert made is not None
    assert any(told in remark for remark in differences(made, template))
    assert not differences(take_apart(ChatTemplate(PHI3)), ChatTemplate(PHI3))


def read_modelfile(text: str) -> list[tuple[str, str]]:
    """(command, value) as Ollama reads them: a value ends at the first line end behind which it is whole."""
    found, at = [], 0
    while at < len(text):
        name, _, rest = text[at:].partition(" ")
        end = -1
        while True:
            end = rest.find("\n", end + 1)
            value = rest[:end].strip()
            if value.startswith('"""'):
                if len(value) >= 6 and value.endswith('"""'):
                    value = value[3:-3]
                    break
            elif value.startswith('"'):
                if len(value) >= 2 and value.endswith('"'):
                    value = value[1:-1]
                    break
            else:
                break
            assert end >= 0, "a quote that never ends"
        found.append((name, value))
        at += len(name) + 1 + end + 1
    return found


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="ab \"\n'#{}\\", max_size=20))
def test_a_modelfile_holds_any_words_or_refuses(words):
    try:
        text = modelfile("./m.gguf", system=words)
    except UserError:
        assert re.search('"""[ ]*\n', words)
        return
    assert read_modelfile(text) == [("FROM", "./m.gguf"), ("SYSTEM", words)]


def base_with(tmp_path, template: str | None, tools: str | None = None, name="llama-spm", **more):
    base = tiny.write(tmp_path / "plain.gguf", name)
    with GGUF.open(base) as file:
        meta = {k: v for k, v in file.metadata.items() if k != "tokenizer.chat_template"} | more
        meta |= {"tokenizer.chat_template": template} if template else {}
        meta |= (
            {"tokenizer.chat_template.tool_use": tools, "tokenizer.chat_templates": ["default", "tool_use"]}
            if tools
            else {}
        )
        write_gguf(
            tmp_path / "m.gguf",
            meta,
            [(n, t.shape, "F32", file.float32(n)) for n, t in file.tensors.items()],
            kinds={k: v for k, v in file.kinds.items() if k in meta and k not in more},
        )
    return tmp_path / "m.gguf"


def adapter_of(base, tmp_path, template):
    adapter = pairs.adapter(base)
    adapter.chat_template = template
    adapter.save(tmp_path / "a.gguf")
    return tmp_path / "a.gguf"


def says(path, tools=None) -> str:
    """What is served from a file: llama.cpp renders with its metadata."""
    with GGUF.open(path) as file:
        return ChatTemplate.for_model(file, Tokenizer(file.metadata)).render(ASK, tools, add_generation_prompt=True)


@pytest.mark.parametrize("trained", [None, tiny.CHATML, TURNS])
@pytest.mark.parametrize("way", ["merge", "lmstudio"])
def test_a_merged_file_is_served_as_it_was_trained(tmp_path, way, trained):
    base = base_with(tmp_path, tiny.CHATML, WITH_TOOLS)
    lora, out = adapter_of(base, tmp_path, trained), tmp_path / "out.gguf"
    if way == "lmstudio":
        out = tmp_path / "lm" / "me" / "x" / "x.gguf"
        (tmp_path / "lm").mkdir()
    where = ["-o", str(out)] if way == "merge" else ["-o", str(tmp_path / "lm"), "--publisher", "me", "--name", "x"]
    assert (
        command(
            ["export", way, "-m", str(base), "--lora", str(lora), *where, "--no-verify", "--type", "same", "-t", "1"]
        )
        == 0
    )
    for tools in (None, [TOOL]):
        with GGUF.open(base) as file:
            tokenizer = Tokenizer(file.metadata)
            wanted = (
                says(base, tools)
                if trained != TURNS
                else ChatTemplate(TURNS, tokenizer).render(ASK, tools, add_generation_prompt=True)
            )
        assert says(out, tools) == wanted
    with GGUF.open(out) as file:
        named = {key for key in file.metadata if key.startswith("tokenizer.chat_template")}
    assert len(named) == (1 if trained == TURNS else 3)


def test_a_tuned_model_has_its_template_alone(tmp_path):
    base = base_with(tmp_path, tiny.CHATML, WITH_TOOLS)
    (tmp_path / "d.jsonl").write_text(json.dumps({"messages": ASK[:3]}) + "\n")
    (tmp_path / "t.jinja").write_text(TURNS)
    for template, count in ((None, 3), (tmp_path / "t.jinja", 1)):
        run = anytune.finetune(
            base,
            tmp_path / "d.jsonl",
            full=anytune.Full(modules="norm"),
            chat_template=template,
            max_steps=1,
            context=64,
            ubatch=64,
            batch=64,
            quiet=True,
            threads=1,
            run_dir=str(tmp_path / f"r{count}"),
        )
        with GGUF.open(run.path) as file:
            assert len([k for k in file.metadata if k.startswith("tokenizer.chat_template")]) == count
            assert file.metadata["tokenizer.chat_template"] == (TURNS if template else tiny.CHATML)


@pytest.mark.parametrize("add_bos", [True, False])
@pytest.mark.parametrize("source", [tiny.CHATML, "{{ bos_token }}" + tiny.CHATML])
def test_a_folder_for_transformers_feeds_the_ids_of_training(tmp_path, source, add_bos):
    transformers = need("transformers")
    base = base_with(tmp_path, source, "{{ bos_token }}" + WITH_TOOLS, **{"tokenizer.ggml.add_bos_token": add_bos})
    assert command(["export", "hf", "-m", str(base), "-o", str(tmp_path / "hf"), "--no-verify"]) == 0
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    with GGUF.open(base) as file:
        tokenizer = Tokenizer(file.metadata)
        template = ChatTemplate.for_model(file, tokenizer)
    for tools in (None, [TOOL]):
        ids, _ = encode_chat(tokenizer, template, ASK[:3], tools)
        found = theirs.apply_chat_template(ASK[:3], tools=tools, tokenize=True, return_dict=False)
        assert np.array_equal(found, ids)
    if add_bos == source.startswith("{{ bos") or not add_bos:
        text = theirs.apply_chat_template(ASK, tokenize=False, add_generation_prompt=True)
        assert text == template.render(ASK, add_generation_prompt=True)


def test_a_folder_with_another_template_has_no_other(tmp_path):
    base = base_with(tmp_path, tiny.CHATML, WITH_TOOLS)
    lora = adapter_of(base, tmp_path, TURNS)
    assert (
        command(["export", "hf", "-m", str(base), "--lora", str(lora), "-o", str(tmp_path / "hf"), "--no-verify"]) == 0
    )
    assert not (tmp_path / "hf" / "additional_chat_templates").exists()
    assert (tmp_path / "hf" / "chat_template.jinja").read_text().endswith(TURNS)


COUNTS = "{% for m in messages %}{{ loop.index }}: {{ m.content }}\n{% endfor %}"


@pytest.mark.parametrize(
    ("template", "options", "said"),
    [
        (COUNTS, [], "--no-template"),
        (TURNS.replace("m.content", "(m.content | trim)"), [], "--accept-differences"),
        (
            templates.GEMMA3 if hasattr(templates, "GEMMA3") else TURNS,
            ["--accept-differences", "--system", 'x"""\ny'],
            "triple quotes",
        ),
        (
            TURNS.replace("{{ '['", "{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}{{ '['"),
            ["--system", "Be brief."],
            "no place for a system message",
        ),
    ],
)
def test_what_ollama_cannot_be_told_is_refused_before_anything_is_merged(tmp_path, capsys, template, options, said):
    base = base_with(tmp_path, template)
    lora = adapter_of(base, tmp_path, None)
    args = [
        "export",
        "ollama",
        "-m",
        str(base),
        "--lora",
        str(lora),
        "-o",
        str(tmp_path / "out"),
        "-t",
        "1",
        "--no-verify",
    ]
    assert command([*args, *options]) == 2
    told = capsys.readouterr()
    assert said in told.err and "weight error" not in told.out and not (tmp_path / "out").exists()


def test_without_a_template_ollama_is_left_to_itself(tmp_path, capsys):
    base = base_with(tmp_path, COUNTS)
    lora = adapter_of(base, tmp_path, None)
    assert (
        command(
            [
                "export",
                "ollama",
                "-m",
                str(base),
                "--lora",
                str(lora),
                "-o",
                str(tmp_path / "out"),
                "-t",
                "1",
                "--no-verify",
                "--no-template",
                "--type",
                "same",
                "--system",
                'Say "yes"',
            ]
        )
        == 0
    )
    text = (tmp_path / "out" / "Modelfile").read_text()
    assert "TEMPLATE" not in text and 'SYSTEM Say "yes"\n' in text
    assert "may differ from the one used in training" in capsys.readouterr().err
