"""Who may ask: Host and Origin are checked before anything else, then the token. Pure ASGI, for any application.

Against DNS rebinding the Host must be a loopback name, an IP address, this machine's own name or one that was allowed:
a page of another site can make none of these its own name. Against requests from other sites' pages an Origin must be
this server's, and what changes something must not be what a plain form can send.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
import re
import socket
import urllib.parse
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from typing import Any

from anytune.http.errors import plain
from anytune.http.limit import Attempts

Scope = dict[str, Any]
App = Callable[[Scope, Callable, Callable], Awaitable[None]]
COOKIE = "anytune"
HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^][:@/\\\s]+)(:\d{1,5})?")
SAFE = ("GET", "HEAD", "OPTIONS")
PLAIN_FORMS = ("application/x-www-form-urlencoded", "multipart/form-data", "text/plain")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "font-src 'self'; manifest-src 'self'; worker-src 'self'; frame-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


@dataclass
class Guard:
    """app: what is guarded; token: None: everyone who reaches the port may ask; hosts: further names of this server;
    secure: it is served over TLS; is_open(path): what a browser gets before it has shown a token (a page's parts, which
    say nothing of what is on this machine); body: what a refusal says, as errors.install() has it.
    """

    app: App
    token: str | None = None
    hosts: Iterable[str] = ()
    secure: bool = False
    is_open: Callable[[str], bool] = lambda path: False
    attempts: Attempts = field(default_factory=Attempts)
    body: Callable[[int, str, None], dict[str, Any]] = plain

    def __post_init__(self) -> None:
        name = socket.gethostname().lower()
        self.names = {"localhost", name, f"{name}.local", *(host.lower() for host in self.hosts)}

    async def __call__(self, scope: Scope, receive: Callable, send: Callable) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":  # no WebSocket is served
            return await send({"type": "websocket.close", "code": 1008})
        headers = _headers(scope)
        problem = self.problem(scope["method"], headers)
        if problem is not None:
            return await self._answer(send, 403, problem)
        if self.token is not None and not self._open(scope):
            given = _given(scope, headers)
            client = (scope.get("client") or ("?",))[0]
            if given is not None and self.attempts.blocked(client):
                return await self._answer(send, 429, "Too many wrong tokens: wait a minute.")
            if given is None or not self.accepts(given):
                if given is not None:
                    self.attempts.failed(client)
                return await self._answer(send, 401, "This needs the token shown in the terminal.")
            if "token" in _query(scope) and scope["method"] == "GET":
                return await self._welcome(scope, send)
        await self.app(scope, receive, _with_headers(send))

    def problem(self, method: str, headers: dict[str, str]) -> str | None:
        """Why a request is refused whoever asks, as a sentence; None: it is not."""
        host = headers.get("host", "")
        if not self.is_own(host):
            return "Unknown host name: use the server's address, or start it with --allow-host NAME."
        origin = headers.get("origin")
        if origin is not None and not self._same(origin, host):
            return "Requests from other websites are refused."
        if headers.get("sec-fetch-site") == "cross-site" and not (
            method == "GET"
            and headers.get("sec-fetch-mode") == "navigate"
            and headers.get("sec-fetch-dest") == "document"
        ):
            return "Requests from other websites are refused."
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if method not in SAFE and (kind in PLAIN_FORMS or (not kind and headers.get("content-length", "0") != "0")):
            return "Send JSON or raw bytes, with a matching Content-Type."
        return None

    def is_own(self, host: str) -> bool:
        """Whether a Host header means this server, by an address or one of its names."""
        match = HOST.fullmatch(host.lower())
        if match is None:
            return False
        name = match[1].strip("[]").rstrip(".")
        if name in self.names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def _same(self, origin: str, host: str) -> bool:
        scheme, _, rest = origin.partition("://")
        return scheme == ("https" if self.secure else "http") and rest.lower() == host.lower()

    def _open(self, scope: Scope) -> bool:
        return scope["method"] in ("GET", "HEAD") and "token" not in _query(scope) and self.is_open(scope["path"])

    def accepts(self, given: str) -> bool:
        """Whether a token, or the cookie derived from it, is the right one; in constant time."""
        token = self.token or ""
        right = [hmac.compare_digest(given.encode(), other.encode()) for other in (token, session(token))]
        return any(right)

    async def _welcome(self, scope: Scope, send: Callable) -> None:
        """A link with the token (the QR code's): keep it as a cookie, and take it out of the address."""
        query = {name: value for name, value in _query(scope).items() if name != "token"}
        path = urllib.parse.quote(scope["path"]) + (f"?{urllib.parse.urlencode(query)}" if query else "")
        path = "/" + path.lstrip("/")  # "//host" would be another site's address
        cookie = f"{COOKIE}={session(self.token or '')}; Path=/; HttpOnly; SameSite=Strict; Max-Age=2592000"
        headers = [
            (b"location", path.encode()),
            (b"set-cookie", (cookie + "; Secure" * self.secure).encode()),
            (b"content-length", b"0"),
            (b"cache-control", b"no-store"),
        ]
        await send({"type": "http.response.start", "status": 303, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    async def _answer(self, send: Callable, status: int, sentence: str) -> None:
        body = json.dumps(self.body(status, sentence, None)).encode()
        start = {
            "type": "http.response.start",
            "status": status,
            "headers": [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                *((name.encode(), value.encode()) for name, value in HEADERS.items()),
            ],
        }
        await send(start)
        await send({"type": "http.response.body", "body": body})


def session(token: str) -> str:
    """What a browser keeps instead of the token itself."""
    return hmac.new(token.encode(), b"anytune session", hashlib.sha256).hexdigest()


def _headers(scope: Scope) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}


def _query(scope: Scope) -> dict[str, str]:
    return dict(urllib.parse.parse_qsl(scope.get("query_string", b"").decode("latin-1")))


def _given(scope: Scope, headers: dict[str, str]) -> str | None:
    """The token of a request: Authorization, the cookie, or (a page's address only) the query."""
    kind, _, value = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer" and value:
        return value.strip()
    if scope["method"] == "GET" and (given := _query(scope).get("token")):
        return given
    try:
        cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return None
    return cookie.value if cookie else None


def _with_headers(send: Callable) -> Callable:
    """Answers with HEADERS, but where the application set its own."""

    async def wrapped(message: dict) -> None:
        if message["type"] == "http.response.start":
            own = {name.lower() for name, _ in message["headers"]}
            message = dict(
                message,
                headers=[
                    *message["headers"],
                    *((name.encode(), value.encode()) for name, value in HEADERS.items() if name.encode() not in own),
                ],
            )
        await send(message)

    return wrapped
