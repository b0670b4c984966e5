"""Chat templates taken apart and written in Go's language; the folders of Ollama and LM Studio."""

import json
import re

import pytest

from anytune.cli.main import run as command
from anytune.export.chat import take_apart
from anytune.export.ollama import _literal, go_template, modelfile
from anytune.errors import UserError
from anytune.gguf import GGUF
from anytune.text.chat import ChatTemplate
from anytune.text.tokenizer import Tokenizer
from tests.export import gotemplate, pairs
from tests.support import tiny
from tests.support.require import need
from tests.text import templates

KNOWN = {name: source for name, source in vars(templates).items() if isinstance(source, str) and "{%" in source}
TURNS = ["Where is the ferry?", "Gone at six.\nAlready.", "And {{ the }} next {one}?", "At <b>nine</b>.", "Thanks"]


def conversations(system: bool):
    for count in (1, 3, 5):
        turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(TURNS[:count])]
        yield turns
        if system:
            yield [{"role": "system", "content": 'Be "brief".\nBe kind.'}, *turns]


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_known_templates_say_the_same_in_go(name):
    template = ChatTemplate(KNOWN[name])
    made = take_apart(template)
    assert made is not None
    source = go_template(made)
    for messages in conversations(made.system is not None):
        wanted = template.render(messages, add_generation_prompt=True)
        assert gotemplate.render(source, messages) == wanted.removeprefix(made.bos)
        assert made.render(messages) == wanted


def test_the_last_answer_can_be_continued():
    """Ollama continues an answer that a conversation ends with: no end of turn, no new prompt."""
    source = go_template(take_apart(ChatTemplate(templates.CHATML)))
    said = gotemplate.render(source, [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Well"}])
    assert said.endswith("<|im_start|>assistant\nWell")


@pytest.mark.parametrize(("name", "add_bos"), [("SMOLLM2", False), ("GEMMA3", True), ("CHATML", False)])
def test_bos_is_left_to_the_program_only_if_it_adds_one(tmp_path, name, add_bos):
    """SmolLM2's BOS token is <|im_start|> too, which nobody adds: it must stay in the template."""
    with GGUF.open(tiny.write(tmp_path / "m.gguf", "llama")) as file:
        tokenizer = Tokenizer(file.metadata | {"tokenizer.ggml.add_bos_token": add_bos})
    template = ChatTemplate(KNOWN[name], tokenizer)
    made = take_apart(template, tokenizer)
    assert made.bos == ("<|im_start|>" if add_bos else "")
    for messages in conversations(True):
        wanted = template.render(messages, add_generation_prompt=True)
        assert made.bos + gotemplate.render(go_template(made), messages) == wanted


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{{ loop.index }}: {{ m.content }}\n{% endfor %}",  # counts
        "{% for m in messages %}<{{ m.role }}>{{ m.content | upper }}{% endfor %}",  # changes words
        "{% for m in messages %}[{{ m.content | length }}]{{ m.content }}{% endfor %}",  # says something about them
        "{{ messages[-1].content }}",  # forgets
        "{{ raise_exception('no') }}",
    ],
)
def test_irregular_templates_are_not_taken(source):
    assert take_apart(ChatTemplate(source)) is None


def test_braces_stay_text():
    for text in ("{{ x }}", "{", "{{{", "a{", "}} {{"):
        assert gotemplate.render(_literal(text) + "{{ .System }}", [{"role": "user", "content": ""}]) == text


def test_what_a_modelfile_cannot_hold():
    with pytest.raises(UserError, match="triple quotes"):
        modelfile("./m.gguf", template='a """\nb')
    with pytest.raises(UserError, match="quotes"):
        modelfile('./m".gguf')
    assert modelfile("./my model.gguf").startswith('FROM "./my model.gguf"\n')


def test_the_ollama_folder(tmp_path, capsys):
    need("xllamacpp")
    base = tiny.write(tmp_path / "m.gguf", "llama", "Q8_0")
    pairs.adapter(base, size=0.3).save(tmp_path / "a.gguf")
    common = ["export", "ollama", "-m", str(base), "--lora", str(tmp_path / "a.gguf"), "-t", "1", "--json"]
    extras = ["--system", "You are wren.", "--parameter", "num_ctx=256"]
    assert command([*common, "-o", str(tmp_path / "wren"), *extras]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] and sorted(p.name for p in (tmp_path / "wren").iterdir()) == ["Modelfile", "m-merged.gguf"]
    text = (tmp_path / "wren" / "Modelfile").read_text()
    assert text.startswith("FROM ./m-merged.gguf\n") and text.endswith("PARAMETER num_ctx 256\n")
    assert 'SYSTEM """You are wren."""' in text and 'PARAMETER stop """<|im_end|>"""' in text and "ADAPTER" not in text
    template = re.search('TEMPLATE """(.*?)"""', text, re.DOTALL)[1]
    messages = next(conversations(False))
    wanted = ChatTemplate(tiny.CHATML).render(messages, add_generation_prompt=True)
    assert gotemplate.render(template, messages) == wanted
    assert command([*common, "-o", str(tmp_path / "wren")]) == 2
    capsys.readouterr()
    assert command([*common, "-o", str(tmp_path / "apart"), "--keep-adapter"]) == 0
    text = (tmp_path / "apart" / "Modelfile").read_text()
    assert f"FROM {base.resolve()}\nADAPTER ./adapter.gguf\n" in text and (tmp_path / "apart" / "adapter.gguf").exists()


def test_a_model_without_a_template_is_told(tmp_path, capsys):
    from anytune.gguf import write_gguf

    base = tiny.write(tmp_path / "m.gguf", "llama")
    with GGUF.open(base) as file:
        metadata = {k: v for k, v in file.metadata.items() if k != "tokenizer.chat_template"}
        tensors = [(n, t.shape, "F32", file.float32(n)) for n, t in file.tensors.items()]
        write_gguf(tmp_path / "n.gguf", metadata, tensors, kinds=file.kinds)
    pairs.adapter(base).save(tmp_path / "a.gguf")
    assert (
        command(
            [
                "export",
                "ollama",
                "-m",
                str(tmp_path / "n.gguf"),
                "--lora",
                str(tmp_path / "a.gguf"),
                "-o",
                str(tmp_path / "x"),
                "--no-verify",
            ]
        )
        == 0
    )
    assert "no chat template" in capsys.readouterr().err
    assert "TEMPLATE" not in (tmp_path / "x" / "Modelfile").read_text()


def test_the_lm_studio_folder(tmp_path, capsys):
    base = tiny.write(tmp_path / "m.gguf", "qwen3", "F16")
    pairs.adapter(base).save(tmp_path / "a.gguf")
    (tmp_path / "models").mkdir()
    common = ["export", "lmstudio", "-m", str(base), "--lora", str(tmp_path / "a.gguf"), "--no-verify"]
    assert command([*common, "-o", str(tmp_path / "models"), "--publisher", "me & you", "--name", "wren 1"]) == 0
    with GGUF.open(tmp_path / "models" / "me-you" / "wren-1" / "wren-1.gguf") as file:
        assert file.metadata["tokenizer.chat_template"] == tiny.CHATML
    assert command([*common, "-o", str(tmp_path / "models"), "--publisher", "me & you", "--name", "wren 1"]) == 2
    assert command([*common, "-o", str(tmp_path / "gone")]) == 2
    assert "LM Studio" in capsys.readouterr().err
