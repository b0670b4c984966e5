"""The judge against a server of our own: both orders, loose replies, retries, failures, and where the key goes."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from anytune.errors import UserError
from anytune.evaluation import judge as module
from anytune.evaluation.judge import Judge, verdict

SECRET = "sk-not-for-anybody-else"


class Server:
    """An endpoint that answers with reply(body, headers) -> (status, headers, text or JSON), and keeps what it got."""

    def __init__(self):
        self.requests, self.reply = [], lambda body, headers: said("tie")
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.requests.append((self.path, body, dict(self.headers)))
                status, headers, content = outer.reply(body, self.headers)
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def close(self):
        self.server.shutdown()
        self.server.server_close()


def said(text):
    return 200, {}, {"choices": [{"message": {"role": "assistant", "content": text}}]}


def part(body, name):
    return body["messages"][1]["content"].split(f"<{name}>\n")[1].split(f"\n</{name}>")[0]


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv(module.KEY, raising=False)
    made = Server()
    yield made
    made.close()


@pytest.fixture
def judge(server):
    return Judge(server.url, "m", timeout=5, sleep=lambda _: None)


def longer(body, _):
    a, b = part(body, "answer_a"), part(body, "answer_b")
    return said(json.dumps({"winner": "A" if len(a) > len(b) else "B" if len(b) > len(a) else "tie"}))


def test_both_orders_are_asked_and_a_preferred_place_is_a_tie(server, judge):
    server.reply = longer
    assert judge.compare("p", "long answer", "short") == 1.0
    assert judge.compare("p", "short", "long answer") == 0.0
    assert judge.compare("p", "same", "same") == 0.5
    pairs = [(part(body, "answer_a"), part(body, "answer_b")) for _, body, _ in server.requests]
    assert pairs[:2] == [("long answer", "short"), ("short", "long answer")]
    server.reply = lambda *_: said('{"winner": "A"}')  # whatever comes first
    assert judge.compare("p", "x", "y") == 0.5
    server.reply = lambda *_: said("I would rather not.")
    assert judge.compare("p", "x", "y") is None
    assert (judge.asked, judge.unclear) == (10, 2)


def test_what_is_sent(server, judge):
    judge.compare("the request", "x", "y", reference="the reference")
    path, body, headers = server.requests[0]
    assert path == "/v1/chat/completions" and body["model"] == "m" and body["temperature"] == 0
    assert body["response_format"] == {"type": "json_object"}
    assert part(body, "request") == "the request" and part(body, "reference_answer") == "the reference"
    assert "Authorization" not in headers
    assert Judge(server.url + "/chat/completions", "m")._endpoint == Judge(server.url + "/", "m")._endpoint


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ('{"winner": "A", "reason": "B is worse"}', "A"),
        ('{"reason": "Answer A is short. winner: A would be wrong", "winner": "B"}', "B"),
        ("```json\n{'winner': 'b'}\n```", "B"),
        ('<think>The winner is A, or is it</think>\n{"winner": "tie"}', "tie"),
        ("The winner is **B**.", "B"),
        ("A", "A"),
        (' "B". ', "B"),
        ("Answer A", "A"),
        ("Winner: both", "tie"),
        ('{"winner": "Answer B"}', "B"),
        ("", None),
        ("A good answer would be longer", None),
        ("{}", None),
        ('{"winner": "abc"}', None),
        ("[" * 9000, None),
    ],
)
def test_loose_replies(text, wanted):
    assert verdict(text) == wanted


def test_passing_failures_are_tried_again_and_servers_without_json_mode_are_served(server, judge):
    waits = []
    judge.sleep = waits.append
    left = [(429, {"Retry-After": "7"}, {}), (503, {}, {}), (200, {}, b"<html>"), said('{"winner": "A"}')]
    server.reply = lambda *_: left.pop(0)
    assert judge.ask("p", "x", "y") == "A"
    assert waits == [7, 2, 4]
    server.reply = lambda body, _: (400, {}, {"error": "what?"}) if "response_format" in body else said("B")
    assert judge.ask("p", "x", "y") == "B"
    assert judge.ask("p", "x", "y") == "B"
    assert ["response_format" in body for _, body, _ in server.requests[-3:]] == [True, False, False]


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        (
            (401, {}, {"error": {"message": f"bad key {SECRET}"}}),
            "401 Unauthorized: bad key …; set the right key in ANY",
        ),
        ((404, {}, {"error": {"message": "no such model"}}), "404 Not Found: no such model; check --judge"),
        ((500, {}, b"\xff" * 100), "500"),
        ((302, {"Location": "http://127.0.0.1:9/elsewhere"}, {}), "302"),
        ((200, {}, b"[" * 100000), "not JSON"),
        ((200, {}, {"choices": []}), "not a chat completion"),
        ((200, {}, [1]), "not a chat completion"),
    ],
)
def test_failures_are_one_sentence_without_the_key(server, monkeypatch, reply, why):
    monkeypatch.setenv(module.KEY, SECRET)
    server.reply = lambda *_: reply
    judge = Judge(server.url, "m", sleep=lambda _: None)
    with pytest.raises(UserError) as raised:
        judge.check()
    assert why in str(raised.value) and SECRET not in str(raised.value) and "\n" not in str(raised.value)
    assert server.requests[0][2]["Authorization"] == f"Bearer {SECRET}"


def test_no_server_and_a_server_that_is_silent(server, monkeypatch):
    address = server.url
    monkeypatch.setattr(module, "TRIES", 2)
    wait = threading.Event()
    server.reply = lambda *_: (wait.wait(5), said("A"))[1]
    with pytest.raises(UserError, match="timed out"):
        Judge(address, "m", timeout=0.05, sleep=lambda _: None).check()
    wait.set()
    server.close()
    with pytest.raises(UserError, match="failed: .*check --judge"):
        Judge(address, "m", timeout=1, sleep=lambda _: None).check()


def test_other_hosts_keys_stay_here(monkeypatch):
    monkeypatch.delenv(module.KEY, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    assert Judge("http://localhost:1/v1", "m")._key == ""
    assert Judge("https://api.openai.com/v1", "m")._key == SECRET
    assert SECRET not in repr(Judge("https://api.openai.com/v1", "m"))
    with pytest.raises(UserError, match="contains a password"):
        Judge("http://me:secret@localhost/v1", "m")


def test_the_command_with_a_judge_that_fails_half_way(cli, server, tmp_path, monkeypatch):
    from tests.support import tiny
    from tests.support.adapters import random_adapter

    monkeypatch.setenv(module.KEY, SECRET)
    path = tiny.write(tmp_path / "tiny.gguf", "llama")
    lora = random_adapter(path, tmp_path / "mine.gguf")
    (tmp_path / "p.txt").write_text("the rain\non the sea\na wave\n")
    args = (
        "evaluate",
        "compare",
        "-m",
        path,
        "--lora",
        lora,
        "-f",
        tmp_path / "p.txt",
        "-n",
        4,
        "-t",
        1,
        "--judge",
        server.url,
        "--judge-model",
        "m",
        "-o",
        tmp_path / "r.json",
        "-o",
        tmp_path / "r.html",
    )
    server.reply = lambda body, headers: longer(body, headers) if len(server.requests) < 6 else (403, {}, {})
    outcome = cli(*args, code=2)
    assert "403" in outcome.err
    facts = json.loads((tmp_path / "r.json").read_text())
    found = facts["judge"]["adapters"]["mine"]
    assert found["no_verdict"] == 1 and found["wins"] + found["ties"] + found["losses"] == 2
    rate, low, high = found["win_rate"]
    assert rate == (found["wins"] + found["ties"] / 2) / 2 and low <= rate <= high and high - low > 0.3  # of two pairs
    assert len(facts["items"]) == 3 and "403" in facts["judge"]["error"]
    for name in ("r.json", "r.html"):
        assert SECRET not in (tmp_path / name).read_text()
    server.reply = longer
    out = cli(*args, "--json", "--force", code=0)
    verdicts = [item["judge"]["mine"] for item in out.json["items"]]
    lengths = [np.sign(len(i["answers"]["mine"]) - len(i["answers"]["base"])) / 2 + 0.5 for i in out.json["items"]]
    assert verdicts == lengths and out.json["judge"]["requests"] == 7
    before = len(server.requests)
    server.reply = lambda *_: (403, {}, {})
    cli(*args, "--force", code=2)  # known before any answer is written
    assert len(server.requests) == before + 1
