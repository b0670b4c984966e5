"""An HTML mail as plain text: paragraphs and lists stay, quotes get their ">", styles and marked signatures go."""

from __future__ import annotations

import re
from html.parser import HTMLParser

_APART = {"p", "ul", "ol", "table", "h1", "h2", "h3", "h4", "h5", "h6", "pre"}  # with an empty line around
_BLOCKS = {"div", "br", "tr", "li", "hr", "section", *_APART}
_VOID = {"br", "hr", "img", "meta", "link", "input", "col", "wbr", "area", "base", "source", "embed"}
_MARK = "\ue000"  # and a digit: how deep what follows is quoted
_HIDDEN = {"script", "style", "head", "title", "template"}
_SIGNATURES = ("gmail_signature", "moz-signature", "protonmail_signature")
_QUOTES = ("yahoo_quoted", "protonmail_quote")  # and every blockquote
_REST = ("divrplyfwdmsg", "appendonsend", "mail-editor-reference-message-container")  # all that follows is quoted


# The stdlib's parser looks to the end of the text for each comment, declaration or tag without an end: they go first.
_DECLARATION = re.compile(r"<[!?][^<>]*>")
_OPEN = re.compile(r"<(?=[^<>]*(?:<|\Z))")


class _Text(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.open: list[tuple[str, bool, bool]] = []  # tags, whether their content is left out, whether it is quoted
        self.skipping = self.preserved = self.quoted = 0
        self.fresh, self.ended = True, False  # whether the line that is being written is empty

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = {name: (value or "").lower() for name, value in attrs}
        if any(mark in known.get("id", "") for mark in _REST):
            self.ended = True
        if tag in _BLOCKS:
            self._newline(tag in _APART, tag == "br")
        if tag == "li":
            self._add("- ")
        if tag in _VOID:
            return
        kind = known.get("class", "")
        hidden = tag in _HIDDEN or any(mark in kind for mark in _SIGNATURES)
        quoted = tag == "blockquote" or any(mark in kind for mark in _QUOTES)
        if quoted:
            self._newline(True)
        self.open.append((tag, hidden, quoted))
        self.skipping += hidden
        self.quoted += quoted
        self.preserved += tag == "pre"

    def handle_endtag(self, tag: str) -> None:
        inner = range(len(self.open) - 1, max(-1, len(self.open) - 50), -1)
        last = next((i for i in inner if self.open[i][0] == tag), None)
        if last is None:
            return
        for name, hidden, quoted in self.open[last:]:
            self.skipping -= hidden
            self.quoted -= quoted
            self.preserved -= name == "pre"
        left = any(quoted for _, _, quoted in self.open[last:])
        del self.open[last:]
        if tag in _BLOCKS or left:
            self._newline(tag in _APART or left)

    def handle_data(self, data: str) -> None:
        self._add(data if self.preserved else re.sub(r"[ \t\r\n\f]+", " ", data))

    def _newline(self, apart: bool, always: bool = False) -> None:
        """End the line if something is on it; apart: leave an empty one."""
        self._add("\n" * (apart + (always or not self.fresh)))

    def _add(self, text: str) -> None:
        if text and not self.skipping and not self.ended:
            if text.strip() or "\n" in text:
                self.fresh = text.endswith("\n")
            mark = f"{_MARK}{min(self.quoted, 9)}"
            self.parts.append(mark + text.replace(_MARK, "").replace("\n", "\n" + mark))


def to_text(html: str) -> str:
    """Broken HTML yields what can be read of it."""
    reader = _Text()
    try:
        reader.feed(_OPEN.sub("&lt;", _DECLARATION.sub("", _without_comments(html))))
        reader.close()
    except (ValueError, AssertionError):  # the stdlib's parser on marked sections that are none
        pass
    lines = []
    for line in "".join(reader.parts).split("\n"):
        words = re.sub(f"{_MARK}[0-9]", "", line)
        # a line is quoted as deeply as its first words are
        depth = next((int(part[0]) for part in line.split(_MARK)[1:] if part[1:].strip()), 0)
        lines.append(">" * depth + " " * bool(depth) + re.sub(r"[ \u00a0]+", " ", words).strip())
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def _without_comments(html: str) -> str:
    parts, at = [], 0
    while (start := html.find("<!--", at)) >= 0:
        parts.append(html[at:start])
        end = html.find("-->", start + 2)
        if end < 0:
            return "".join(parts)
        at = end + 3
    return "".join([*parts, html[at:]])
