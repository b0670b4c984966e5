"""Where each piece of a conversation is in the text that a chat template makes of it.

Every piece (words, thoughts, a call's name and arguments, a tool's name) is rendered between two marks. Taking the
marks out must give the plain rendering again, which proves that they changed nothing: then the places are exact, also
where the same words are in the template, and a piece without a mark is one that the template leaves out. A template
that looks at the data more closely (at its length, at its first character) is asked again with fewer marks, and in the
end with the piece replaced: what changed in the text is where it was; or with a mark in its middle.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from anytune.errors import UserError
from anytune.text.messages import THOUGHTS

TOOLS = -1  # the owner of what the tools say
STAND_IN = "\ue002"  # one private character, which no filter changes and no text begins with
#: tags around thoughts, at which templates cut a message's content
THOUGHT_TAG = re.compile(
    r"</?[^<>\s]{0,24}(?:think|thought|reason)[^<>\s]{0,24}>|\[/?THINK(?:ING)?\]|<\|channel>thought|<channel\|>"
    r"|\[BEGIN FINAL RESPONSE\]",
    re.IGNORECASE,
)
# JSON of ASCII only writes the private characters as \ue000
_MARK = re.compile(r"(?:\ue000|\\ue000)(\d{9})(\d+)\.([01])(?:\ue001|\\ue001)")
SECONDS = 10.0  # of this thread's processor time, for all renderings of one conversation
_RENDERINGS = 40  # of one conversation, before its last pieces are left unplaced

Render = Callable[[list[dict], "list[dict] | None"], str]


@dataclass(frozen=True)
class Piece:
    """owner: index of the message, or TOOLS. kind: "words", "thought", "name", "argument" or "tool"."""

    owner: int
    kind: str
    text: str


@dataclass(frozen=True)
class Trace:
    """places[k]: [start, end) in the text, of each time that pieces[k] is shown; none: it is left out."""

    text: str
    pieces: list[Piece]
    places: list[list[tuple[int, int]]]

    def missing(self) -> Iterator[Piece]:
        """Pieces that the text does not show. Thoughts given under two keys need be there only once."""
        twice = {p for p, at in zip(self.pieces, self.places, strict=True) if at and p.kind == "thought"}
        return (p for p, at in zip(self.pieces, self.places, strict=True) if not at and p not in twice)

    def spans(self) -> list[tuple[int, int, Piece]]:
        """(start, end, piece) in the text's order."""
        found = [(*place, p) for p, at in zip(self.pieces, self.places, strict=True) for place in at]
        return sorted(found, key=lambda span: span[:2])


def trace(render: Render, messages: Sequence[Mapping], tools: Sequence[Mapping] | None) -> Trace:
    """render(messages, tools) -> text, of messages as templates get them. Raises UserError as it does."""
    pieces: list[Piece] = []
    _walk(messages, tools, lambda piece: pieces.append(piece) or piece.text)
    text = render(list(messages), list(tools) if tools else None)
    return Trace(text, pieces, _Search(render, messages, tools, text, pieces).places())


class _Search:
    """The places of one conversation's pieces, in as few renderings as will do."""

    def __init__(self, render: Render, messages, tools, text: str, pieces: list[Piece]) -> None:
        self.render, self.messages, self.tools, self.text, self.pieces = render, messages, tools, text, pieces
        self.left, self.deadline = _RENDERINGS, time.thread_time() + SECONDS
        self.found: list[list[tuple[int, int]]] = [[] for _ in pieces]

    def places(self) -> list[list[tuple[int, int]]]:
        every = list(range(len(self.pieces)))
        if not every or self._marked(every):
            return self.found
        kinds: dict[tuple, list[int]] = {}
        for k in every:
            piece = self.pieces[k]
            role = self.messages[piece.owner].get("role") if piece.owner >= 0 else None
            kinds.setdefault((piece.kind, role), []).append(k)
        for part in kinds.values():
            self._halve(part)
        return self.found

    def _halve(self, part: list[int]) -> None:
        if self._marked(part):
            return
        if len(part) > 1:
            self._halve(part[: len(part) // 2])
            self._halve(part[len(part) // 2 :])
        else:
            self._replaced(part[0])

    def _again(self, change: Callable[[int, str], str]) -> str | None:
        """The text with each piece k as change(k, its text); None if the template refuses that, or enough was tried."""
        if not self.left:
            return None
        self.left -= 1
        if time.thread_time() > self.deadline:
            raise UserError(
                f"The chat template was stopped: rendering a conversation took more than {SECONDS:g} seconds."
            )
        numbers = iter(range(len(self.pieces)))
        messages, tools = _walk(self.messages, self.tools, lambda piece: change(next(numbers), piece.text))
        try:
            return self.render(messages, tools)
        except UserError:
            return None

    def _marked(self, chosen: list[int]) -> bool:
        """Mark the chosen pieces. False, and nothing noted, if that changes the rest of the text."""
        nonce, wanted = str(secrets.randbelow(9 * 10**8) + 10**8), set(chosen)
        marked = self._again(
            lambda k, text: f"\ue000{nonce}{k}.0\ue001{text}\ue000{nonce}{k}.1\ue001" if k in wanted else text
        )
        if marked is None:
            return False
        plain, size, at = [], 0, 0
        opened: dict[int, int] = {}
        found: dict[int, list[tuple[int, int]]] = {}
        for mark in _MARK.finditer(marked):
            if mark[1] != nonce:  # of the data
                continue
            plain.append(marked[at : mark.start()])
            size, at, k = size + len(plain[-1]), mark.end(), int(mark[2])
            if mark[3] == "0":
                opened[k] = size
            else:
                found.setdefault(k, []).append((opened.pop(k, size), size))
        if "".join(plain) + marked[at:] != self.text:
            return False
        for k, start in opened.items():  # the template cut its end off
            found.setdefault(k, []).append((start, start))
        for k, places in found.items():
            self.found[k] = places
        return True

    def _replaced(self, k: int) -> None:
        changed = self._again(lambda at, text: STAND_IN if at == k else text)
        place = replaced(self.text, changed) or self._split(k)
        if place:
            self.found[k] = [place]

    def _split(self, k: int) -> tuple[int, int] | None:
        """Where a piece is that shows only as it is: marked in its middle, for a template that looks at its ends."""
        piece = self.pieces[k].text
        half = len(piece) // 2
        changed = self._again(lambda at, text: text[:half] + STAND_IN + text[half:] if at == k else text)
        if changed is None or changed.count(STAND_IN) != 1 or changed.replace(STAND_IN, "") != self.text:
            return None
        start = changed.index(STAND_IN) - half
        return (start, start + len(piece)) if start >= 0 and self.text.startswith(piece, start) else None


def replaced(text: str, changed: str | None) -> tuple[int, int] | None:
    """[start, end) of what a single STAND_IN stands for in the changed text; None if more than that differs."""
    if changed is None or changed.count(STAND_IN) != 1:
        return None
    before, after = changed.split(STAND_IN)
    end = len(text) - len(after)
    return (len(before), end) if len(before) <= end and text.startswith(before) and text.endswith(after) else None


def _walk(messages, tools, leaf: Callable[[Piece], str]) -> tuple[list[dict], list[dict] | None]:
    """The conversation with leaf(piece) in place of each piece, in an order that is always the same."""
    out = []
    for i, message in enumerate(messages):
        new = dict(message)
        for key in THOUGHTS:
            if isinstance(new.get(key), str):
                new[key] = _core(new[key], lambda text: leaf(Piece(i, "thought", text)))  # noqa: B023
        if isinstance(new.get("content"), str):
            new["content"] = _content(i, new, leaf)
        if isinstance(new.get("tool_calls"), list):
            new["tool_calls"] = [_call(i, call, leaf) for call in new["tool_calls"]]
        out.append(new)
    return out, None if tools is None else [_tool(tool, leaf) for tool in tools]


def _core(text: str, leaf: Callable[[str], str]) -> str:
    """leaf() of the text without the white space around it, which templates take away."""
    core = text.strip()
    at = text.find(core)
    return text[:at] + leaf(core) + text[at + len(core) :] if core else text


def _content(i: int, message: dict, leaf: Callable[[Piece], str]) -> str:
    """An assistant's content is cut at the tags around thoughts; what comes before a closing one is a thought."""
    content = message["content"]
    if message.get("role") != "assistant":
        return _core(content, lambda text: leaf(Piece(i, "words", text)))
    out, at, opened = [], 0, False
    tags = list(THOUGHT_TAG.finditer(content))
    for number, tag in enumerate([*tags, None]):
        part = content[at : tag.start() if tag else len(content)]
        closing = tag is not None and not opens_thought(tag[0])
        kind = "thought" if opened or closing and number == 0 else "words"
        out.append(_core(part, lambda text: leaf(Piece(i, kind, text))))  # noqa: B023
        if tag is not None:
            out.append(tag[0])
            at, opened = tag.end(), not closing
    return "".join(out)


def opens_thought(tag: str) -> bool:
    """Whether what follows the tag is a thought."""
    return not (tag.startswith(("</", "[/", "<channel|", "[BEGIN")) or "end" in tag.lower())


def _call(i: int, call: Any, leaf: Callable[[Piece], str]) -> Any:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        return call
    new = dict(function)
    if isinstance(new.get("name"), str):
        new["name"] = _core(new["name"], lambda text: leaf(Piece(i, "name", text)))
    if "arguments" in new:
        new["arguments"] = _leaves(new["arguments"], lambda text: leaf(Piece(i, "argument", text)))
    return {**call, "function": new}


def _leaves(value: Any, leaf: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return _core(value, leaf)
    if isinstance(value, Mapping):
        return {key: _leaves(inner, leaf) for key, inner in value.items()}
    return [_leaves(inner, leaf) for inner in value] if isinstance(value, list) else value


def _tool(tool: Any, leaf: Callable[[Piece], str]) -> Any:
    """Only the names: descriptions may be cut, and types are compared."""
    if not isinstance(tool, Mapping):
        return tool
    if isinstance(tool.get("function"), Mapping):
        return {**tool, "function": _tool(tool["function"], leaf)}
    name = tool.get("name")
    if not isinstance(name, str):
        return tool
    return {**tool, "name": _core(name, lambda text: leaf(Piece(TOOLS, "tool", text)))}
