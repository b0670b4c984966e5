"""Requests of other sites, guesses, nonsense: refused in OpenAI's form, without traceback or path of this machine."""

import json
import random

import pytest

from tests.serve.server import Server
from tests.support.require import need

PATHS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/load_lora_adapter",
    "/v1/unload_lora_adapter",
    "/lora-adapters",
)
GOOD = {
    PATHS[0]: {
        "model": "base",
        "messages": [{"role": "user", "content": "x"}],
        "max_tokens": 2,
        "n": 1,
        "stop": "y",
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
        "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "integer"}}},
        "logit_bias": {"3": 1.0},
        "lora": [{"id": 0, "scale": 1.0}],
        "logprobs": True,
        "top_logprobs": 2,
        "chat_template_kwargs": {"x": 1},
        "tool_choice": "auto",
        "stream": False,
    },
    PATHS[1]: {"model": "base", "prompt": ["x", [3]], "max_tokens": 2, "logprobs": 1, "stream_options": {}},
    PATHS[2]: {"model": "base", "input": ["x"], "encoding_format": "float"},
    PATHS[3]: {"lora_name": "n", "lora_path": "/etc/passwd"},
    PATHS[4]: {"lora_name": "n"},
    PATHS[5]: [{"id": 0, "scale": 1.0}],
}
ODD = (
    None,
    True,
    -1,
    0,
    1e308,
    10**30,
    float("nan"),
    "",
    "base:",
    "\ud800",
    "../../etc/passwd",
    "x" * 5000,
    "\0",
    [],
    {},
    [[]],
    {"a": {}},
    [None],
    [{"role": "user"}],
    [{"role": 3, "content": [{}]}],
    {"type": "json_schema"},
    {"$ref": "#/$defs/x"},
    {"type": "object", "properties": {"a": {"pattern": "(((((a*)*)*)*)*"}}},
    "{{ 7 * 7 }}",
    [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}],
    {"messages": 1},
    [{"id": 2**40, "scale": 1}],
    "<|im_end|>",
)


def altered(value, rng):
    """A copy with something in it replaced, removed or added."""
    value = json.loads(json.dumps(value))
    at, place = value, None
    while isinstance(at, (dict, list)) and at and (place is None or rng.random() < 0.6):
        place = at
        key = rng.choice(list(at)) if isinstance(at, dict) else rng.randrange(len(at))
        at = at[key]
    if place is None:  # nothing is left in it
        return value
    if rng.random() < 0.1 and isinstance(place, dict):
        del place[key]
    elif rng.random() < 0.1 and isinstance(place, dict):
        place[rng.choice(("x", "__proto__", "grammar", "stream"))] = rng.choice(ODD)
    else:
        place[key] = rng.choice(ODD)
    return value


def test_nonsense_is_refused_in_a_sentence(server, files):
    rng = random.Random(5)
    told = 0
    for number in range(350):
        path = rng.choice(PATHS)
        body = altered(GOOD[path], rng)
        if rng.random() < 0.3:
            body = altered(body, rng)
        content = json.dumps(body).encode()
        if rng.random() < 0.05:
            content = content[: rng.randrange(len(content))] + rng.choice((b"", b"\xff", b"[" * 20000))
        answer = server.http.request("POST", path, content=content, headers={"content-type": "application/json"})
        assert answer.status_code in (200, 400, 404), (answer.status_code, path, body, answer.text)
        for secret in (str(files), "Traceback", "site-packages", "/etc/passwd"):
            assert secret not in answer.text or answer.status_code == 200, (body, answer.text)
        if answer.status_code != 200:
            told += 1
            error = answer.json()["error"]
            assert error["message"] and error["type"] == "invalid_request_error" and {"param", "code"} <= set(error)
    assert told > 100
    server.post("/lora-adapters", [])
    assert server.ask("x")  # and it goes on


@pytest.mark.parametrize("name", ["messages", "self", "form", "add_generation_prompt"])
def test_what_a_template_is_always_given_cannot_be_set(server, name):
    answer = server.post(PATHS[0], {"messages": GOOD[PATHS[0]]["messages"], "chat_template_kwargs": {name: 5}})
    assert answer.status_code == 400 and name in answer.json()["error"]["message"]


def test_other_sites_and_rebound_names_are_refused(server):
    for headers in (
        {"host": "evil.example"},
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"content-type": "text/plain"},
    ):
        for path in PATHS:
            answer = server.http.post(path, content=b"{}", headers={"content-type": "application/json"} | headers)
            assert answer.status_code == 403 and answer.json()["error"]["message"], (path, headers)
    answer = server.http.get("/v1/models", headers={"host": "evil.example"})
    assert answer.status_code == 403 and "access-control-allow-origin" not in server.http.get("/v1/models").headers


def test_a_large_body_is_not_read(server):
    assert (
        server.http.post(
            "/v1/completions", content=b" " * (40 << 20), headers={"content-type": "application/json"}
        ).status_code
        == 413
    )


@pytest.fixture(scope="module")
def outside(files, tmp_path_factory):
    """A server that others can reach, which loads adapters from one folder."""
    need("openai")
    allowed = tmp_path_factory.mktemp("allowed")
    (allowed / "b.gguf").write_bytes((files / "b.gguf").read_bytes())
    (allowed / "link.gguf").symlink_to(files / "a.gguf")
    made = Server(
        tmp_path_factory.mktemp("home"),
        "-m",
        str(files / "tiny.gguf"),
        "--host",
        "0.0.0.0",
        "--tls",
        "--lora-dir",
        str(allowed),
        key="the key",
        ANYTUNE_API_KEY="the key",
    )
    made.allowed = allowed
    yield made
    made.close()


def test_others_need_the_key_and_cannot_name_files(outside, files):
    assert outside.url.startswith("https://")
    assert [m.id for m in outside.client.models.list()] == ["base"]
    for key in (None, "wrong"):
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        answer = outside.http.get("/v1/models", headers=headers)
        assert answer.status_code == 401 and answer.json()["error"]["code"] == "invalid_api_key"
    assert outside.http.get("/health").status_code == 200
    headers = {"authorization": "Bearer the key"}

    def load(name, path):
        return outside.http.post("/v1/load_lora_adapter", json={"lora_name": name, "lora_path": path}, headers=headers)

    for path in (str(files / "a.gguf"), "../a.gguf", "link.gguf", "/etc/passwd", "nothing.gguf", "~/x", "\0"):
        refused = load("a", path)
        assert refused.status_code == 400, path
        assert "--lora-dir" in refused.text or "not the path" in refused.text, path
    assert load("b", "b.gguf").status_code == 200 and load("c", str(outside.allowed / "b.gguf")).status_code == 200
    for _ in range(12):
        last = outside.http.get("/v1/models", headers={"authorization": "Bearer guess"})
    assert last.status_code == 429
