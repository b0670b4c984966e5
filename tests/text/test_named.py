"""The built-in templates by name, against what the models' published ones render; a file of that name comes first."""

import pytest

from anytune.errors import UserError
from anytune.cli.opening import template_file
from anytune.text import ChatTemplate
from anytune.text.named import NAMES, named_template

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Yo"},
    {"role": "user", "content": "Bye"},
]
HEAD = "<|start_header_id|>{}<|end_header_id|>\n\n{}"
RENDERED = {
    "chatml": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    "<|im_start|>assistant\nYo<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n",
    "gemma": "<start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\nYo<end_of_turn>\n"
    "<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n",
    "llama3": "".join(HEAD.format(m["role"], m["content"] + "<|eot_id|>") for m in CHAT) + HEAD.format("assistant", ""),
    "phi3": "<|system|>\nBe brief.<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\nYo<|end|>\n<|user|>\nBye<|end|>\n"
    "<|assistant|>\n",
    "zephyr": "<|system|>\nBe brief.\n<|user|>\nHi\n<|assistant|>\nYo\n<|user|>\nBye\n<|assistant|>\n",
}


@pytest.mark.parametrize("name", NAMES)
def test_each_renders_as_published(name):
    assert ChatTemplate(named_template(name)).render(CHAT, add_generation_prompt=True) == RENDERED[name]


def test_a_file_of_that_name_is_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert named_template("chatml") is not None and template_file("chatml") == "chatml"
    (tmp_path / "chatml").write_text("mine")
    assert named_template("chatml") is None
    with pytest.raises(UserError, match="built-in"):
        template_file("chatlm")
