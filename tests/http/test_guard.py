"""Who may ask: other sites' pages, rebound names and guessers may not, whatever they send."""

import asyncio
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anytune.errors import UserError
from anytune.http.errors import without_paths
from anytune.http.guard import HEADERS, Guard, session
from anytune.http.limit import TRIES, Attempts
from anytune.http.token import token_in

TOKEN = "0123456789abcdef0123456789abcdef"


async def served(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": b"secret"})


def ask(guard, method="GET", path="/api/x", query="", client="10.0.0.9", **headers):
    """(status, headers, body) of a request; header names with _ for -."""
    headers = {"host": "127.0.0.1:7861"} | {name.replace("_", "-"): value for name, value in headers.items()}
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": query.encode(),
        "client": (client, 5),
        "headers": [(name.encode(), value.encode()) for name, value in headers.items() if value is not None],
    }
    sent = []

    async def send(message):
        sent.append(message)

    async def receive():
        return {"type": "http.request", "body": b""}

    asyncio.run(guard(scope, receive, send))
    return (
        sent[0]["status"],
        {name.decode(): value.decode() for name, value in sent[0]["headers"]},
        b"".join(message.get("body", b"") for message in sent[1:]),
    )


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1:7861",
        "localhost:7861",
        "localhost",
        "LOCALHOST:1",
        "[::1]:7861",
        "192.168.1.7:7861",
        "localhost.:7861",
        "studio.example:443",
    ],
)
def test_own_names_are_served_with_strict_headers(host):
    status, headers, body = ask(Guard(served, hosts=["studio.example"]), host=host)
    assert status == 200 and body == b"secret" and headers.items() >= HEADERS.items()
    assert "unsafe" not in headers["content-security-policy"]


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:7861",
        "127.0.0.1.evil.example",
        "",
        "localhost.evil.example",
        "evil@127.0.0.1",
        "127.0.0.1:7861.evil.example",
        "[",
        "a b",
        None,
    ],
)
def test_names_that_were_rebound_are_refused(host):
    status, headers, body = ask(Guard(served), host=host)
    assert status == 403 and b"secret" not in body


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "null",
        "https://127.0.0.1:7861",
        "http://127.0.0.1:80",
        "http://127.0.0.1:7861.evil.example",
        "http://localhost:7861",
        "file://",
        "",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_pages_of_other_origins_are_refused(origin, method):
    assert ask(Guard(served), method, origin=origin, content_type="application/json")[0] == 403


def test_pages_of_other_sites_are_refused_but_a_link_to_this_one():
    guard = Guard(served)
    assert ask(guard, sec_fetch_site="cross-site", sec_fetch_mode="no-cors", sec_fetch_dest="image")[0] == 403
    assert ask(guard, sec_fetch_site="cross-site", sec_fetch_mode="navigate", sec_fetch_dest="iframe")[0] == 403
    assert ask(guard, sec_fetch_site="cross-site", sec_fetch_mode="navigate", sec_fetch_dest="document")[0] == 200
    assert (
        ask(
            guard,
            "POST",
            sec_fetch_site="cross-site",
            sec_fetch_mode="navigate",
            sec_fetch_dest="document",
            content_type="application/json",
        )[0]
        == 403
    )
    assert ask(guard, origin="http://127.0.0.1:7861", sec_fetch_site="same-origin")[0] == 200


@pytest.mark.parametrize(
    "kind",
    [
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "text/plain",
        "TEXT/PLAIN;charset=utf-8",
        None,
    ],
)
def test_what_a_form_can_send_changes_nothing(kind):
    assert ask(Guard(served), "POST", content_type=kind, content_length="5")[0] == 403


def test_the_token_opens_in_three_ways():
    guard = Guard(served, TOKEN)
    assert ask(guard)[0] == 401
    assert ask(guard, authorization=f"Bearer {TOKEN}")[0] == 200
    assert ask(guard, cookie=f"anytune={session(TOKEN)}")[0] == 200
    status, headers, body = ask(guard, path="/", query=f"token={TOKEN}&a=b%20c")
    assert status == 303 and headers["location"] == "/?a=b+c" and body == b""
    cookie = headers["set-cookie"]
    assert "SameSite=Strict" in cookie and "HttpOnly" in cookie and "Secure" not in cookie and TOKEN not in cookie
    secure = Guard(served, TOKEN, secure=True)
    assert "Secure" in ask(secure, path="/", query=f"token={TOKEN}")[1]["set-cookie"]
    assert ask(guard, "POST", query=f"token={TOKEN}", content_type="application/json")[0] == 401


def test_a_link_with_a_token_leads_nowhere_else():
    location = ask(Guard(served, TOKEN), path="//evil.example/", query=f"token={TOKEN}")[1]["location"]
    assert location == "/evil.example/"


def test_open_parts_need_no_token_and_say_nothing_of_it():
    guard = Guard(served, TOKEN, is_open=lambda path: path == "/")
    assert ask(guard, path="/")[0] == 200 and ask(guard, "POST", path="/", content_type="application/json")[0] == 401
    assert ask(guard, path="/", query="token=wrong")[0] == 401


@given(st.text(max_size=200))
def test_no_other_token_opens(text):
    guard = Guard(served, TOKEN)
    for headers in ({"authorization": f"Bearer {text}"}, {"cookie": f"anytune={text}"}, {"cookie": text}):
        if all(ord(c) < 256 and c not in "\r\n" for c in text) and TOKEN not in text:
            headers = {name: value.encode("latin-1").decode("latin-1") for name, value in headers.items()}
            assert ask(guard, **headers)[0] in (401, 429)


def test_guessing_is_slowed_down_for_the_guesser_alone():
    now = [0.0]
    guard = Guard(served, TOKEN, attempts=Attempts(lambda: now[0]))
    for _ in range(TRIES):
        assert ask(guard, authorization="Bearer wrong")[0] == 401
    assert ask(guard, authorization="Bearer wrong")[0] == 429
    assert ask(guard, authorization=f"Bearer {TOKEN}")[0] == 429
    assert ask(guard, client="10.0.0.8", authorization=f"Bearer {TOKEN}")[0] == 200
    now[0] = 61.0
    assert ask(guard, authorization=f"Bearer {TOKEN}")[0] == 200


def test_a_websocket_is_closed():
    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(Guard(served)({"type": "websocket", "headers": []}, None, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]


def test_the_token_is_kept_for_its_owner_alone(tmp_path):
    path = tmp_path / "a" / "token"
    token = token_in(path)
    assert len(token) >= 32 and token_in(path) == token and stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_text("x")
    with pytest.raises(UserError, match="contains no token"):
        token_in(path)


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("/home/me/data/v1.jsonl, line 3: not valid", "v1.jsonl, line 3: not valid"),
        ("There is no model file /mnt/x y/m.gguf", "There is no model file /mnt/x y/m.gguf"),
        ("see '/a/b/c.gguf'.", "see 'c.gguf.'"),
        ("C:\\Users\\me\\x.gguf is", "x.gguf is"),
        ("see https://huggingface.co/a/b/tree/main", "see https://huggingface.co/a/b/tree/main"),
        ("2/3 of it, and/or more", "2/3 of it, and/or more"),
        ("~/anytune/jobs/x is", "x is"),
    ],
)
def test_errors_name_files_without_their_folders(text, clean):
    from pathlib import Path

    if " y/" in text:
        assert without_paths(text, Path("/mnt/x y")) == "There is no model file m.gguf"
    elif "'." in text:
        assert "/a/b" not in without_paths(text) and "c.gguf" in without_paths(text)
    else:
        assert without_paths(text) == clean
