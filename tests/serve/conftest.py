import pytest

from tests.cli.conftest import cli  # noqa: F401
from tests.serve.server import Server
from tests.support import tiny
from tests.support.adapters import random_adapter
from tests.support.require import need

BACKENDS = ("llama.cpp", "anytune")


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """A tiny model and three adapters of it, a, b and c."""
    folder = tmp_path_factory.mktemp("serve")
    model = tiny.write(folder / "tiny.gguf", "qwen3", context_length=1024)
    for seed, name in enumerate("abc", 1):
        random_adapter(model, folder / f"{name}.gguf", seed)
    return folder


@pytest.fixture(scope="session", params=BACKENDS)
def server(request, files, tmp_path_factory):
    """A server with the adapter a."""
    need("openai"), need("llguidance"), need("xllamacpp")
    made = Server(
        tmp_path_factory.mktemp("home"),
        "-m",
        str(files / "tiny.gguf"),
        "--lora",
        str(files / "a.gguf"),
        "--backend",
        request.param,
    )
    yield made
    made.close()
