"""Requests of other sites, guesses, nonsense: refused in a sentence, without a traceback or a path of this machine."""

import json
import random
import urllib.parse

import httpx
import pytest

from tests.studio.server import Server, chats


@pytest.fixture(scope="module")
def lan(models, tmp_path_factory):
    """A studio that asks for a token, reached by loopback."""
    server = Server(tmp_path_factory.mktemp("lan"), models, "--lan", "--host", "127.0.0.1", "--tls")
    yield server
    server.close()


def test_other_sites_and_rebound_names_are_refused(studio, data):
    raw = {"content-type": "application/json"}
    for headers in (
        {"host": "evil.example"},
        {"host": f"evil.example:{studio.http.base_url.port}"},
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
    ):
        for method, path in (
            ("GET", "/api/models"),
            ("GET", "/api/events"),
            ("DELETE", f"/api/data/{data}"),
            ("POST", "/api/runs"),
            ("PUT", "/api/uploads/x"),
            ("GET", "/api/openapi.json"),
        ):
            content = b"{}" if method != "GET" else None
            answer = studio.http.request(method, path, headers=raw | headers, content=content)
            assert answer.status_code == 403, (method, path, headers)
    form = studio.http.post("/api/runs", data={"model": "x"})
    assert form.status_code == 403
    assert "access-control-allow-origin" not in studio.http.get("/api/models").headers
    assert studio.get(f"data/{data}")


def test_the_network_needs_the_token_and_the_page_does_not(lan):
    assert lan.url.startswith("https://")
    for path in ("/api/models", "/api/jobs", "/api/events", "/api/openapi.json", "/api/data/x/look"):
        assert lan.http.get(path).status_code == 401
    page = lan.http.get("/runs")
    assert page.status_code == 200 and '<div id="app">' in page.text
    token = (lan.home / "token").read_text().strip()
    assert token not in page.text and lan.http.get("/api/models?token=wrong").status_code == 401
    answer = lan.http.get("/", params={"token": token})
    assert answer.status_code == 303 and answer.headers["location"] == "/"
    assert all(word in answer.headers["set-cookie"] for word in ("HttpOnly", "SameSite=Strict", "Secure"))
    assert lan.http.get("/api/models").status_code == 200  # the client kept the cookie
    with httpx.Client(base_url=lan.url, verify=False) as other:
        assert other.get("/api/models", headers={"authorization": f"Bearer {token}"}).status_code == 200


def test_the_terminal_shows_a_qr_code_of_the_link(lan):
    lines = [lan.process.stdout.readline() for _ in range(20)]
    assert any("/?token=" in line for line in lines) and any("█" in line or "▀" in line for line in lines)


def test_an_open_address_without_lan_is_refused(models, tmp_path):
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, "-m", "anytune", "studio", "--host", "0.0.0.0", "--home", str(tmp_path)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "--lan" in done.stderr


VALUES = [
    None,
    True,
    -1,
    0,
    1e308,
    10**30,
    "",
    "x" * 5000,
    "../../etc/passwd",
    "\0",
    "💥",
    "NaN",
    [],
    {},
    [[]],
    {"a": {}},
    "%00",
    "' OR 1=1 --",
    "<script>alert(1)</script>",
    "C:\\x",
    "{{7*7}}",
    -0.0,
    [None] * 50,
]


def requests(api: dict, chance: random.Random, good: dict):
    """Requests of every operation with values that make sense, and others."""
    schemas = api["components"]["schemas"]

    def value(schema: dict, depth: int = 0):
        if chance.random() < 0.35 or depth > 4:
            return chance.choice(VALUES)
        schema = schemas[schema["$ref"].rsplit("/", 1)[1]] if "$ref" in schema else schema
        if "anyOf" in schema:
            return value(chance.choice(schema["anyOf"]), depth + 1)
        if "enum" in schema:
            return chance.choice(schema["enum"])
        kind = schema.get("type")
        if kind == "object" and "properties" in schema:
            return {
                name: good[name] if name in good and chance.random() < 0.7 else value(part, depth + 1)
                for name, part in schema["properties"].items()
                if chance.random() < 0.85
            }
        return {
            "object": {"1": None},
            "array": [value(schema.get("items", {}), depth + 1)],
            "string": "x",
            "integer": chance.randint(-2, 5),
            "number": chance.random(),
            "boolean": True,
        }.get(kind)

    for path, methods in api["paths"].items():
        for method, operation in methods.items():
            if path.endswith("events") or path == "/api/models/pull" or (method, path) == ("delete", "/api/bin"):
                continue
            names = {
                one["name"]: chance.choice([good.get(one["name"], "x"), *map(str, VALUES)])
                for one in operation.get("parameters", ())
            }
            where = path
            for name in list(names):
                if f"{{{name}}}" in where:
                    where = where.replace(f"{{{name}}}", urllib.parse.quote(names.pop(name)[:300], safe="") or "x")
            body = None
            if "requestBody" in operation:
                content = next(iter(operation["requestBody"]["content"].values()))
                body = value(content["schema"])
            yield method.upper(), where, names, body


def test_nonsense_gets_a_sentence(studio, data):
    api = studio.get("openapi.json")
    run = studio.until(studio.train(data, studio.model, 2)["id"], "finished")["id"]
    good = {
        "model": studio.model,
        "data": data,
        "identifier": run,
        "adapters": [run],
        "columns": [None],
        "max_tokens": 2,
        "messages": [{"role": "user", "content": "x"}],
        "settings": {"max_steps": 1},
    }
    chance, seen, asked = random.Random(7), set(), 0
    for _ in range(4):
        for method, path, query, body in requests(api, chance, good):
            if "/{" in path or (method == "DELETE" and run in path) or (method == "DELETE" and data in path):
                continue
            content = None if body is None else json.dumps(body).encode("utf-8", "replace")
            try:
                answer = studio.http.request(
                    method, path, params=query, content=content, headers={"content-type": "application/json"}
                )
            except httpx.InvalidURL:
                continue
            asked += 1
            seen.add(answer.status_code)
            text = answer.text
            assert answer.status_code < 500, (method, path, query, body, text)
            assert "Traceback" not in text and str(studio.home) not in text and "/root/" not in text, (path, text[:500])
            if answer.status_code >= 400:
                assert set(answer.json()) == {"error"}, text
    assert asked > 150 and {200, 404, 422} <= seen
    for body in (b"", b"{", b"[" * 100_000, b"\xff\xfe", b'{"a": 1' + b" " * 1000, b"null", b'"x"'):
        answer = studio.http.post("/api/runs", content=body, headers={"content-type": "application/json"})
        assert answer.status_code in (400, 422) and set(answer.json()) == {"error"}, answer.text
    assert studio.get("health")["ok"] and studio.get(f"jobs/{run}")["state"] == "finished"


def test_half_a_surrogate_pair_is_refused_and_nothing_is_lost(studio, data):
    before = studio.get(f"data/{data}")
    reading = {"model": studio.model, "columns": {"prompt": "\ud800", "completion": "y"}}
    edit = {"version": 1, "changes": {"1": '{"text": "\ud800"}'}}
    for method, path, body in (("PUT", "reading", reading), ("POST", "edit", edit)):
        answer = studio.http.request(
            method, f"/api/data/{data}/{path}", content=json.dumps(body), headers={"content-type": "application/json"}
        )
        assert answer.status_code == 422 and "surrogate" in answer.json()["error"], answer.text
    assert studio.get(f"data/{data}") == before


def test_a_body_that_is_too_large_is_refused_and_not_held(studio):
    def endless():
        for _ in range(40):
            yield b"x" * (1 << 20)

    answer = studio.http.post("/api/data/text", content=endless(), headers={"content-type": "application/json"})
    assert answer.status_code in (400, 413, 422)


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(10**9) %}{% endfor %}",
        "{{ ''.__class__.__mro__ }}",
        "{{ cycler.__init__.__globals__.os.system('touch /tmp/x') }}",
    ],
)
def test_templates_of_hostile_models_do_no_harm(models, tmp_path, template):
    from anytune.gguf import GGUF, write_gguf

    with GGUF.open(models / "tiny.gguf") as gguf:
        tensors = [(name, info.shape, info.type.name, gguf.blocks(name)) for name, info in gguf.tensors.items()]
        write_gguf(
            tmp_path / "evil.gguf", gguf.metadata | {"tokenizer.chat_template": template}, tensors, kinds=gguf.kinds
        )
    server = Server(tmp_path, tmp_path)
    try:
        model = server.get("models")["models"][0]["name"]
        data = server.upload(chats(1))["id"]
        answer = server.http.get(f"/api/data/{data}/look", params={"model": model})
        assert answer.status_code in (200, 400) and server.get("health")["ok"]
        if answer.status_code == 200:
            assert answer.json()["nothing"]
    finally:
        server.close()
