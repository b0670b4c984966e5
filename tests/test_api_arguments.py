"""A wrong argument to any call of the Python API is a sentence (UserError) that names no flag: never a bare error."""

import ast
import inspect
import re
import warnings
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

import anytune
from anytune.words import python_words
from anytune.errors import UserError
from tests.support import tiny

SMALL = {"context": 64, "ubatch": 64, "batch": 64, "max_steps": 1, "quiet": True}
ROWS = [{"messages": [{"role": "user", "content": "is it"}, {"role": "assistant", "content": "so it is"}]}] * 3
WRONG = (
    *(None, -1, 0, 3.7, float("nan"), float("inf"), 10**30, True, 1j),
    *("", "nowhere", "\0", "ø" * 300, b"x", Path("nowhere"), Path()),
    *([], [1], ["x"], [None], [[]], {}, {"a": 1}, {"x"}, (), range(3), np.zeros(3), np.float32(2.5), np.int64(-4)),
    *(object(), object, print),
)
FEW = (-1, float("nan"), 10**30, True, "\0", "nowhere", b"x", [None], {"a": 1}, (), np.zeros(3), object(), object)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    folder = tmp_path_factory.mktemp("arguments")
    tiny.write(folder / "model.gguf", "llama")
    with pytest.MonkeyPatch.context() as patch, anytune.load(folder / "model.gguf", device="cpu") as model:
        patch.chdir(folder)
        run = anytune.finetune(model, ROWS, run_dir="run", **SMALL)
        run.adapter.save("a.gguf")
        yield model, run.adapter


def calls(model, adapter):
    """name -> (function, arguments that work)."""
    both, text = {"model": model, "adapter": "a.gguf"}, "one two three " * 60
    one = {"prompt": "one two", "max_tokens": 1}
    return {
        "load": (anytune.load, {"model": "model.gguf", "device": "cpu"}),
        "pull": (anytune.pull, {"name": "model.gguf"}),
        "Lora": (anytune.Lora, {}),
        "Full": (anytune.Full, {}),
        "Callbacks": (anytune.Callbacks, {}),
        "finetune": (anytune.finetune, {"model": model, "data": ROWS, **SMALL}),
        "generate": (anytune.generate, {"model": model, **one}),
        "stream": (anytune.stream, {"model": model, **one}),
        "Conversation": (anytune.Conversation, {"model": model}),
        "quantize": (anytune.quantize, {"model": "model.gguf", "output": None, "type": "Q8_0"}),
        "merge": (anytune.merge, {**both, "output": "m.gguf", "type": "Q8_0", "text": text[:80], "force": True}),
        "export": (anytune.export, {**both, "output": "e.gguf", "force": True}),
        "verify": (anytune.verify, {"model": model, "positions": 2}),
        "perplexity": (anytune.perplexity, {"model": model, "text": text, "context": 16, "chunks": 1}),
        "evaluate": (anytune.evaluate, {**both, "adapters": "a.gguf", "data": [{"prompt": "a"}], "max_tokens": 1}),
        "logits": (model.logits, {"ids": [1, 2]}),
        "Adapter.load": (anytune.Adapter.load, {"path": "a.gguf"}),
        "save": (adapter.save, {"path": "b.gguf"}),
        "save_peft": (adapter.save_peft, {"folder": "peft", "gguf": model.gguf}),
    }


NAMES = sorted(calls(Mock(), Mock()))
SLOW = {"finetune", "verify", "merge"}  # a call that works takes long: fewer values are tried


FLAG = re.compile(r"(?<![\w-])(--?[a-z][a-z0-9-]*)(?![\w-])")
OTHERS = {"--merge", "--json", "--name", "--no-template", "--qera", "--train"}  # of other programs, or without a call


def test_every_flag_in_a_message_has_an_argument():
    """Messages of what Python reaches name flags, which words.python_words puts arguments in the place of."""
    for part in (
        "adapter",
        "engine",
        "export",
        "generation",
        "hub",
        "likelihood",
        "llamacpp",
        "model",
        "text",
        "train",
    ):
        for path in (Path(anytune.__file__).parent / part).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "UserError":
                    parts = (one.value for one in ast.walk(node) if isinstance(one, ast.Constant))
                    text = re.sub("`[^`]*`", "", " ".join(map(str, parts)))
                    flags = {flag for flag in FLAG.findall(text) if python_words(f"{flag} x") == f"{flag} x"}
                    assert flags <= OTHERS | {"-key"}, f"{path}:{node.lineno} names {flags - OTHERS}: see ARGUMENTS"


def test_every_call_is_tried():
    public = {name for name in anytune.__all__ if callable(getattr(anytune, name))}
    assert public - {"Model", "Adapter", "Run", "UserError"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_argument_is_a_sentence(here, name, monkeypatch):
    def begun(_trainer):
        raise UserError("everything was taken, and the first step would come now")

    monkeypatch.setattr("anytune.train.execute.Trainer.run", begun)
    function, right = calls(*here)[name]
    wrong = []
    for word in inspect.signature(function).parameters:
        for value in FEW if name in SLOW else WRONG:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    made = function(**{**right, word: value})
                    list(made) if name == "stream" else None
            except UserError as error:
                if "--" in "".join(str(error).split("`")[::2]):
                    wrong.append((word, value, str(error)))
            except Exception as error:
                wrong.append((word, value, f"{type(error).__name__}: {error}"))
    assert not wrong
