import pytest

from tests.studio.server import Server, chats
from tests.support import tiny
from tests.support.require import need


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """A cache of models with one tiny model in it."""
    for module in ("fastapi", "uvicorn", "httpx"):
        need(module)
    folder = tmp_path_factory.mktemp("models")
    tiny.write(folder / "tiny.gguf", "qwen3")
    return folder


@pytest.fixture(scope="module")
def studio(models, tmp_path_factory):
    """A studio that the tests of a module share."""
    server = Server(tmp_path_factory.mktemp("studio"), models)
    server.model = server.get("models")["models"][0]["name"]
    yield server
    server.close()


@pytest.fixture(scope="module")
def data(studio):
    return studio.upload(chats())["id"]
