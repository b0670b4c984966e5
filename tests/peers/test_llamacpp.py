"""The two ways to ask llama.cpp give one answer, so either may stand for it."""

import os
from pathlib import Path

import numpy as np
import pytest

from anytune.llamacpp import judge, library
from anytune.errors import UserError
from tests.peers.conftest import IDS
from tests.support.distributions import kl
from tests.support.require import need


def ask(path, monkeypatch, server: bool, **options) -> list[np.ndarray]:
    """llamacpp_logprobs, the child told by its environment to use the server."""
    script = "import sys, json; from anytune.llamacpp import judge, library\n"
    if server:
        script += "def refuse(job): raise library.Unknown\nlibrary.logprobs = refuse\n"
    script += "judge.child(json.load(sys.stdin))"
    run = judge.subprocess.run
    monkeypatch.setattr(judge.subprocess, "run", lambda command, **kw: run([command[0], "-c", script], **kw))
    return judge.llamacpp_logprobs(path, vocab=320, threads=2, **options)


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_library_and_server_agree(tiny_file, monkeypatch, name):
    need("xllamacpp")
    path, sequences, positions = tiny_file(name), [IDS, IDS[7:19]], [[39, 0, 22], list(range(12))]
    fast = ask(path, monkeypatch, False, sequences=sequences, positions=positions)
    slow = ask(path, monkeypatch, True, sequences=sequences, positions=positions)
    for quick, careful in zip(fast, slow, strict=True):
        assert quick.shape == careful.shape
        assert kl(careful, quick).max() < 1e-9
    assert kl(fast[0][1:2], fast[0][:1]).max() > 0.1, "all positions alike"


def test_library_is_used(tiny_file):
    """The fallback must not hide that this build of the library is laid out in another way."""
    need("xllamacpp")
    lib, _ = library.library()
    assert library._context_params(lib, 64)


def test_the_child_finds_sources_that_are_not_installed(tiny_file, monkeypatch):
    need("xllamacpp")
    run, found = judge.subprocess.run, []

    def watched(command, **more):
        found.append(Path(more["env"]["PYTHONPATH"].split(os.pathsep)[0], *judge.__name__.split(".")))
        return run(command, **more)

    monkeypatch.setattr(judge.subprocess, "run", watched)
    judge.llamacpp_logprobs(tiny_file("llama"), [IDS], vocab=320, threads=1)
    assert [path.with_suffix(".py") for path in found] == [Path(judge.__file__).resolve()]


def test_refused_file_is_named(tmp_path):
    need("xllamacpp")
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(UserError, match="broken.gguf"):
        judge.llamacpp_logprobs(broken, [IDS], vocab=320)
