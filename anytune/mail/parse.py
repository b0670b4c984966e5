"""One raw message as headers and plain text. Whatever is broken in it yields less text, never an error."""

from __future__ import annotations

import email
import email.policy
import re
from dataclasses import dataclass
from email.header import decode_header
from email.message import Message
from email.utils import getaddresses

PARTS = 200  # MIME parts looked at
DEPTH = 20  # of parts within parts
TEXT = 256 << 10  # characters of text, and of HTML
_ID = re.compile(r"<[^<>\s]{1,500}>")
REFERENCES = 50  # the last so many
# What the stdlib raises on broken mail.
_LOST = (ValueError, LookupError, TypeError, AttributeError, RecursionError, AssertionError)


@dataclass(frozen=True)
class Mail:
    """id: the Message-ID, or "". sender: address in lower case; name: as the sender writes it; to: the first receiver's
    name, or what comes before the @. parents: ids that it answers, the nearest last; thread: Gmail's number, or "".
    text: of the body, quotes still in it."""

    id: str
    sender: str
    name: str
    to: str
    subject: str
    parents: tuple[str, ...]
    thread: str
    automatic: bool
    text: str


def parse(raw: bytes, with_text: bool = True) -> Mail | None:
    """None if there is no sender to be found. with_text=False leaves `text` empty, which is faster."""
    try:
        message = email.message_from_bytes(raw if with_text else _head(raw), policy=email.policy.compat32)
    except _LOST:
        return None
    senders, receivers = _addresses(message, "From"), _addresses(message, "To")
    if not senders:
        return None
    name, sender = senders[0]
    references = _ID.findall(_header(message, "References"))[-REFERENCES:]
    answered = _ID.findall(_header(message, "In-Reply-To"))[:1]
    own = _ID.findall(_header(message, "Message-ID"))
    automatic = _header(message, "Auto-Submitted").strip().lower() not in ("", "no") or _header(
        message, "Precedence"
    ).strip().lower() in ("bulk", "junk", "auto_reply")
    to = receivers[0][0] or receivers[0][1].split("@")[0] if receivers else ""
    return Mail(
        own[0] if own else "",
        sender,
        name,
        to,
        " ".join(_header(message, "Subject").split())[:300],
        tuple(dict.fromkeys([*(r for r in references if r not in answered), *answered])),
        _header(message, "X-GM-THRID").strip()[:40],
        automatic,
        body(message) if with_text else "",
    )


def _head(raw: bytes) -> bytes:
    ends = [at for at in (raw.find(b"\n\n"), raw.find(b"\r\n\r\n")) if at >= 0]
    return raw[: min(ends)] if ends else raw


def _header(message: Message, name: str) -> str:
    """Decoded; "" if there is none, or it is broken beyond reading."""
    try:
        return _words(str(message.get(name, ""))[:50000])
    except _LOST:
        return ""


def _addresses(message: Message, name: str) -> list[tuple[str, str]]:
    try:
        found = getaddresses([str(message.get(name, ""))[:5000]])
    except _LOST:
        return []
    out = []
    for shown, address in found:
        try:
            shown = _words(shown)
        except _LOST:
            pass
        if "@" in address:
            out.append((" ".join(shown.split())[:100], address.strip().lower()))
    return out


def _words(value: str) -> str:
    """A header's text, its encoded words decoded."""
    return "".join(
        _decoded(part, charset) if isinstance(part, bytes) else part for part, charset in decode_header(value)
    )


def body(message: Message) -> str:
    """The text that a mail program shows: the plain part, or the HTML one as text; attachments left out."""
    from anytune.mail.html import to_text

    plain: list[str] = []
    html: list[str] = []
    stack, seen = [(message, 0)], 0
    while stack and seen < PARTS:
        part, depth = stack.pop()
        seen += 1
        try:
            kind = part.get_content_type()
            if part.is_multipart():
                # message/rfc822 is left out: a forwarded mail is not the author's
                if depth < DEPTH and kind.startswith("multipart/"):
                    stack += [(inner, depth + 1) for inner in reversed(part.get_payload())]
                continue
            if part.get_content_disposition() == "attachment" or part.get_filename():
                continue
            if kind == "text/plain":
                plain.append(_flowed(part, _text(part)))
            elif kind == "text/html":
                html.append(to_text(_text(part)[:TEXT]))
        except _LOST:
            continue
    text = "\n\n".join(piece.strip("\n") for piece in plain if piece.strip())
    text = text or "\n\n".join(piece for piece in html if piece)
    return text[:TEXT].replace("\r\n", "\n").replace("\r", "\n").replace("\0", "")


def _text(part: Message) -> str:
    content = part.get_payload(decode=True)
    return _decoded(content if isinstance(content, bytes) else b"", part.get_content_charset())


def _decoded(content: bytes, charset: str | None) -> str:
    for name in (charset, "utf-8"):
        try:
            if name:
                return content.decode(name)
        except _LOST:  # a charset that does not exist, or not that one
            continue
    return content.decode("cp1252", "replace")


def _flowed(part: Message, text: str) -> str:
    """Paragraphs of format=flowed as one line each (RFC 3676)."""
    if str(part.get_param("format", "")).lower() != "flowed":
        return text
    stuffed, joined = str(part.get_param("delsp", "")).lower() == "yes", []
    open_line = False
    for line in re.split(r"\r\n|\r|\n", text.rstrip("\r\n")):
        quoted = line.startswith(">")
        line = line[1:] if line.startswith(" ") else line
        flows = line.endswith(" ") and line != "-- " and not quoted
        content = line[:-1] if flows and stuffed else line
        if open_line and not quoted and line != "-- ":
            joined[-1] += content
        else:
            joined.append(content)
        open_line = flows
    return "\n".join(line if line == "-- " else line.rstrip() for line in joined)
