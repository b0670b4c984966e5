"""hf: names through huggingface_hub, against a small server that speaks the hub's API."""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading

import pytest

from tests.support import tiny
from tests.support.require import need


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("hub") / "m.gguf", "qwen3").read_bytes()


class Hub(http.server.ThreadingHTTPServer):
    """Serves `files` as owner/repo; `seen` records (method, path, Range, Authorization)."""

    def __init__(self, files):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.seen, self.hash, self.stop_after = files, [], None, None


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer(False)

    def do_GET(self):
        self.answer(True)

    def answer(self, body):
        server, headers = self.server, self.headers
        server.seen.append((self.command, self.path, headers["Range"], headers["Authorization"]))
        path = self.path.partition("?")[0]
        if path.startswith(("/api/models/owner/repo", "/api/datasets/owner/repo")):
            entries = [
                {"type": "file", "path": name, "rfilename": name, "size": len(content), "oid": "0" * 40}
                for name, content in server.files.items()
            ]
            whole = {"id": "owner/repo", "sha": "c" * 40, "siblings": entries}
            return self.send(200, json.dumps(entries if "/tree/" in path else whole).encode(), {}, body)
        content = server.files.get(path.partition("/resolve/main/")[2])
        if content is None:
            missing = "EntryNotFound" if "/resolve/" in path and "/owner/repo/" in path else "RepoNotFound"
            return self.send(404, b"", {"X-Error-Code": missing}, body)
        start = int((headers["Range"] or "bytes=0-")[6:].partition("-")[0])
        tags = {"ETag": f'"{server.hash or hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": "c" * 40}
        if start:
            tags["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self.send(206 if start else 200, content[start:], tags, body)

    def send(self, status, content, headers, body):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)


@pytest.fixture
def hub(model):
    need("huggingface_hub")
    server = Hub(
        {
            "README.md": b"#",
            "m-Q8_0.gguf": model,
            "m-Q4_K_M.gguf": model + b"",
            "bad.gguf": b"<html>",
            "m-Q2_K-00001-of-00002.gguf": model,
        }
    )
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def pull(name, hub, home, **environment):
    env = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "XDG"))}
    env |= {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
        "HF_HOME": str(home / "hf"),
        "HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        **environment,
    }
    return subprocess.run([sys.executable, "-m", "anytune", "pull", name], capture_output=True, text=True, env=env)


def test_a_type_is_fetched_into_the_hubs_own_cache(hub, model, tmp_path):
    done = pull("hf:owner/repo:Q8_0", hub, tmp_path, HF_TOKEN="hf_secret")
    assert done.returncode == 0, done.stderr
    path = done.stdout.strip()
    assert path.startswith(str(tmp_path / "hf/hub/models--owner--repo/snapshots")) and open(path, "rb").read() == model
    assert all(token == "Bearer hf_secret" for *_, token in hub.seen)
    seen = len(hub.seen)
    again = pull("hf:owner/repo:Q8_0", hub, tmp_path)
    assert again.stdout.strip() == path and len(hub.seen) == seen  # nobody is asked for what is here


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("hf:owner/repo:none.gguf", "no such file"),
        ("hf:owner/repo:Q6_K", "no GGUF file of type Q6_K"),
        ("hf:other/repo:x.gguf", "check the spelling"),
        ("hf:owner/repo:bad.gguf", "not a usable model"),
        ("hf:owner/repo:m-Q2_K-00001-of-00002.gguf", "one of 2 parts"),
    ],
)
def test_what_cannot_be_fetched_is_said(hub, tmp_path, name, says):
    done = pull(name, hub, tmp_path)
    assert done.returncode == 2 and says in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not [path for _, path, *_ in hub.seen if "00001-of" in path]


def test_a_wrong_hash_is_refused(hub, tmp_path):
    hub.hash = "0" * 64
    done = pull("hf:owner/repo:m-Q8_0.gguf", hub, tmp_path)
    assert done.returncode == 2 and "instead of 0000" in done.stderr, done.stderr
    assert not list(tmp_path.rglob("0" * 64))


def test_no_network(hub, tmp_path):
    done = pull("hf:owner/repo:m-Q8_0.gguf", hub, tmp_path, HF_HUB_OFFLINE="1")
    assert done.returncode == 2 and "check the network" in done.stderr, done.stderr
    assert not hub.seen
