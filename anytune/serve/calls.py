"""How a template writes a tool call, found by rendering one: so that what a model writes is read back the same way.

Three families cover what is in use: a JSON object that holds name and arguments; the name, then the arguments as a JSON
object; the name, then each argument between tags of its own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from anytune.errors import UserError

NAME, KEYS, VALUES = "probe_function", ("probe_first", "probe_second"), ("first value", "second value")
PROBE = [{"role": "user", "content": "x"}]
#: what is asked of a model whose template knows no calls
COMMON = ("<tool_call>\n", "\n</tool_call>")


@dataclass(frozen=True)
class Call:
    """arguments: an object, or text where it is not JSON."""

    name: str
    arguments: Any


@dataclass(frozen=True)
class CallForm:
    """opening, closing: around each call. keys: of name and arguments in a JSON object; middle: between name and a JSON
    object of arguments; or parts: what comes before each argument's name, its value, and behind that."""

    opening: str
    closing: str
    keys: tuple[str, str] | None = None
    middle: str = ""
    parts: tuple[str, str, str] | None = None

    @property
    def marker(self) -> str:
        """What begins a call, as far as it is certain; "" where only a "{" at the start of an answer does."""
        return self.opening.strip()

    def parse(self, text: str) -> tuple[str, list[Call]]:
        """(words, calls) of an answer; a call that cannot be read stays among the words."""
        found: list[Call] = []
        at = text.find(self.marker) if self.marker else (0 if text.lstrip().startswith("{") else -1)
        first = at
        while at >= 0:
            behind = self._skip(text, at + len(self.marker))
            made = self._call(text, behind)
            if made is None:
                break
            call, end = made
            found.append(call)
            end = self._behind(text, end)
            at = self._next(text, end)
        return (text[:first].rstrip(), found) if found else (text, [])

    def _skip(self, text: str, at: int) -> int:
        while at < len(text) and text[at] in " \t\r\n":
            at += 1
        return at

    def _behind(self, text: str, at: int) -> int:
        at, closing = self._skip(text, at), self.closing.strip()
        return at + len(closing) if closing and text.startswith(closing, at) else at

    def _next(self, text: str, at: int) -> int:
        """Where the next call begins: behind its marker again, or behind a comma in the same list."""
        at = self._skip(text, at)
        if self.marker and text.startswith(self.marker, at):
            return at
        if self.marker.endswith("[") and text.startswith(",", at):
            return at + 1 - len(self.marker)
        return at if not self.marker and text.startswith(("{", ";"), at) else -1

    def _call(self, text: str, at: int) -> tuple[Call, int] | None:
        if self.parts is not None:
            return self._tagged(text, at)
        if self.keys is None:
            end = text.find(self.middle.strip(), at) if self.middle.strip() else text.find("{", at)
            name, at = text[at:end].strip(), end + len(self.middle.strip())
            decoded = _decode(text, self._skip(text, at)) if end >= 0 else None
            return (Call(name, decoded[0]), decoded[1]) if decoded and name else None
        decoded = _decode(text, at)
        if decoded is None or not isinstance(decoded[0], Mapping):
            return None
        inner = decoded[0]
        if isinstance(inner.get("function"), Mapping):
            inner = inner["function"]
        name = inner.get(self.keys[0])
        arguments = inner.get(self.keys[1], inner.get("arguments", inner.get("parameters", {})))
        return (Call(name, arguments), decoded[1]) if isinstance(name, str) and name else None

    def _tagged(self, text: str, at: int) -> tuple[Call, int] | None:
        before, between, after = (part.strip() for part in self.parts)
        stop = text.find(self.closing.strip(), at)
        stop = len(text) if stop < 0 else stop
        place = text.find(self.middle.strip(), at) if self.middle.strip() else text.find(before, at)
        if place < 0:
            return None
        name, arguments = text[at:place].strip(), {}
        pattern = re.compile(re.escape(before) + r"(.*?)" + re.escape(between) + r"(.*?)" + re.escape(after), re.DOTALL)
        for match in pattern.finditer(text, place, stop):
            arguments[match[1].strip()] = _value(match[2].strip("\n"))
        return (Call(name, arguments), stop) if name else None


def form_of(render: Callable[..., str]) -> CallForm | None:
    """The form of a template's calls; None if it shows none. render(messages, tools, add_generation_prompt),
    as ChatTemplate.render."""
    call = {"name": NAME, "arguments": dict(zip(KEYS, VALUES, strict=True))}
    properties = {key: {"type": "string"} for key in KEYS}
    schema = {"type": "object", "properties": properties, "required": list(KEYS)}
    tool = {"type": "function", "function": {"name": NAME, "description": "x", "parameters": schema}}

    def said(calls: int) -> str:
        listed = [{"type": "function", "id": f"call{n:05d}", "function": call} for n in range(calls)]
        return render([*PROBE, {"role": "assistant", "content": "", "tool_calls": listed}], [tool])

    try:
        asked, whole = render(PROBE, [tool], add_generation_prompt=True), said(1)
    except UserError:
        return None
    start = next((i for i, (a, b) in enumerate(zip(asked, whole, strict=False)) if a != b), min(len(asked), len(whole)))
    for left, right in ("<>", "[]"):  # no tag is cut in two
        if whole.rfind(left, 0, start) > whole.rfind(right, 0, start):
            start = whole.rfind(left, 0, start)
    speech = whole[start:]
    at = speech.find(NAME)
    if at < 0 or any(value not in speech[at:] for value in VALUES):
        return None
    found = _json_form(speech, at) or _named_form(speech, at) or _tagged_form(speech, at)
    if found is None:
        return None
    try:
        twice = said(2)[start:]
    except UserError:
        twice = ""
    return _around(found, speech, twice, render)


def _around(form: CallForm, speech: str, twice: str, render: Callable[..., str]) -> CallForm:
    """What is around each call: what a second one has before and behind it, without what only opens or ends the
    turn. twice: the same speech with the call made twice."""
    try:
        ended = render([*PROBE, {"role": "assistant", "content": "\ue002"}]).rpartition("\ue002")[2]
    except UserError:
        ended = ""
    end = len(speech) - len(form.closing)
    form = replace(form, closing=form.closing.removesuffix(ended))
    second = twice.find(NAME, end) if twice[:end] == speech[:end] else -1
    if second < 0:
        return form
    gap = twice[end : second if form.keys is None else twice.rfind("{", 0, second)]
    n = next((n for n in range(min(len(gap), len(form.opening)), 0, -1) if gap.endswith(form.opening[-n:])), 0)
    n -= gap[len(gap) - n :].startswith(">")  # the end of different tags
    return (
        replace(form, opening=gap[len(gap) - n :], closing=gap[: len(gap) - n]) if gap[len(gap) - n :].strip() else form
    )


def _json_form(speech: str, at: int) -> CallForm | None:
    for start in range(at, -1, -1):
        if speech[start] != "{" or (decoded := _decode(speech, start)) is None:
            continue
        found, end = decoded
        name = next((key for key, value in found.items() if value == NAME), None)
        arguments = next((key for key, value in found.items() if KEYS[0] in str(value)), None)
        if name and arguments:
            return CallForm(speech[:start], speech[end:], keys=(name, arguments))
    return None


def _named_form(speech: str, at: int) -> CallForm | None:
    for start in range(at + len(NAME), len(speech)):
        if speech[start] == "{" and (decoded := _decode(speech, start)) and KEYS[0] in decoded[0]:
            return CallForm(speech[:at], speech[decoded[1] :], middle=speech[at + len(NAME) : start])
    return None


def _tagged_form(speech: str, at: int) -> CallForm | None:
    places = [speech.find(word, at + len(NAME)) for pair in zip(KEYS, VALUES, strict=True) for word in pair]
    if -1 in places or places != sorted(places):
        return None
    first, value, second, _ = places
    between, gap = speech[first + len(KEYS[0]) : value], speech[value + len(VALUES[0]) : second]
    head = speech[at + len(NAME) : first]
    # what comes before each argument is the common end of what comes before the first and before the second
    n = next((n for n in range(min(len(head), len(gap)), 0, -1) if head[-n:] == gap[-n:] and head[-n] in "<[|("), 0)
    if not n or not between:
        return None
    rest = speech[places[3] + len(VALUES[1]) :]
    after = gap[:-n]
    return CallForm(speech[:at], rest.removeprefix(after), middle=head[:-n], parts=(head[-n:], between, after))


def _decode(text: str, at: int) -> tuple[Any, int] | None:
    try:
        found, end = json.JSONDecoder(strict=False).raw_decode(text, at)
    except (ValueError, RecursionError):
        return None
    return (found, end) if isinstance(found, dict) else None


def _value(text: str) -> Any:
    """A tagged argument: JSON where it is a number, a truth value, a list or an object; else text."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return text if isinstance(found, str) else found


def written(call: Mapping[str, Any]) -> str:
    """A call in the common form, for a template that shows none. call: OpenAI's, arguments as text or an object."""
    arguments = call.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            pass
    try:
        inner = json.dumps({"name": call.get("name"), "arguments": arguments}, ensure_ascii=False)
    except RecursionError:
        raise UserError("The arguments of a tool call nest too deeply.") from None
    return COMMON[0] + inner + COMMON[1]


def names(tools: Sequence[Mapping[str, Any]]) -> list[str]:
    return [tool["function"]["name"] for tool in tools]
