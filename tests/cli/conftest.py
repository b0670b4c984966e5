"""The command line inside this process, and tiny files to give it."""

import json
import os
from dataclasses import dataclass

import pytest

from anytune.cli.main import run
from tests.support import tiny


@dataclass
class Outcome:
    """Exit code and what was printed."""

    code: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)


@pytest.fixture
def cli(capsys, monkeypatch):
    """cli("info", path) -> Outcome."""
    monkeypatch.delenv("ANYTUNE_DEBUG", raising=False)

    def call(*args, code=None):
        capsys.readouterr()
        got = run([os.fspath(a) if isinstance(a, os.PathLike) else str(a) for a in args])
        outcome = Outcome(got, *capsys.readouterr())
        if code is not None:
            assert outcome.code == code, f"{args}: exit code {got}, not {code}\n{outcome.out}\n{outcome.err}"
        return outcome

    return call


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A tiny llama, F32."""
    return tiny.write(tmp_path_factory.mktemp("models") / "tiny.gguf", "llama")


@pytest.fixture
def chats(tmp_path):
    """A JSONL of six short conversations."""
    path = tmp_path / "chats.jsonl"
    rows = [
        {"messages": [{"role": "user", "content": f"Say {n}"}, {"role": "assistant", "content": f"{n}, as you like."}]}
        for n in range(6)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
