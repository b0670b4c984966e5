"""The form in which a template reads a conversation, where templates disagree.

Some ask whether content is null, some join it to text; some write a call's arguments as JSON, some expect JSON text;
each looks for thoughts under a key of its own, and not all know developers. Each form is tried until nothing of the
conversation is left out, first the one that the data have.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from anytune.errors import UserError
from anytune.text.messages import THOUGHTS, arguments_object, arguments_text, called, thoughts
from anytune.text.trace import STAND_IN, Render, trace

_ALIASED = ("reasoning_content", "thinking", "reasoning")  # the first that a message has counts


@dataclass(frozen=True)
class Form:
    """empty: the content of an assistant's message without words: "given", "null", "text" ("") or "absent".
    arguments: of calls, "object" or "text". system: developers speak as system. thoughts: the keys that the template
    reads, () if none is known. wrapped: tools are as {"type": "function", "function": …}."""

    empty: str = "given"
    arguments: str = "object"
    system: bool = False
    thoughts: tuple[str, ...] = ()
    wrapped: bool = False

    def apply(self, messages: list[dict], tools: list[dict] | None) -> tuple[list[dict], list[dict] | None]:
        """Normalised messages and tools in this form. Raises UserError for arguments that are broken JSON."""
        if self.wrapped and tools:
            tools = [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools]
        return [self._message(message, number) for number, message in enumerate(messages, 1)], tools

    def _message(self, message: dict, number: int) -> dict:
        if message["role"] == "developer":
            return {**message, "role": "system"} if self.system else message
        if message["role"] != "assistant":
            return message
        new = dict(message)
        if self.empty != "given" and _wordless(message):
            new["content"] = None if self.empty == "null" else ""
            if self.empty == "absent":
                del new["content"]
        new = self._with_thoughts(new)
        if new.get("tool_calls"):
            new["tool_calls"] = [
                {**call, "function": {**call["function"], "arguments": self._arguments(call["function"], number)}}
                for call in new["tool_calls"]
            ]
        return new

    def _with_thoughts(self, message: dict) -> dict:
        """Thoughts under the two commonest keys, as transformers puts them, and under one that the template reads."""
        first = next((message[key] for key in _ALIASED if message.get(key) is not None), None)
        if first is not None:
            message = {"thinking": first, **message, "reasoning_content": first}
        given = thoughts(message)
        if given and self.thoughts and not any(key in self.thoughts for key in given):
            message = {**message, self.thoughts[0]: next(iter(given.values()))}
        return message

    def _arguments(self, function: Mapping[str, Any], number: int) -> Any:
        found = arguments_object(function, number)  # in either form, so that both refuse the same
        return found if self.arguments == "object" else arguments_text(function)


def _wordless(message: Mapping[str, Any]) -> bool:
    return not (message.get("content") or "").strip() and bool(message.get("tool_calls") or thoughts(message))


def choose(render: Render, known: Known, messages: list[dict], tools: list[dict] | None) -> Form:
    """The first form in which the template shows all of the conversation, or the one in which it shows most.

    render: of messages in a form. Raises the template's own UserError if it refuses every form.
    """
    best = Form(
        arguments=known.arguments() if any(map(called, messages)) else "object",
        thoughts=known.thoughts() if any(map(thoughts, messages)) else (),
    )
    if not _doubtful(messages):
        if tools is None or all("function" in tool for tool in tools):
            return best
        return next(
            (form for form in (best, replace(best, wrapped=True)) if _score(render, form, messages, tools) < _REFUSED),
            best,
        )
    start, score = best, _score(render, best, messages, tools)
    for changes in _alternatives(start, messages, tools):
        if score[:3] == (0, 0, 0):
            break
        other = replace(start, **changes)
        found = _score(render, other, messages, tools)
        if found < score:
            best, score = other, found
    return best


def _doubtful(messages: list[dict]) -> bool:
    return any(
        m["role"] == "developer" or m.get("content") is None or m.get("tool_calls") or thoughts(m) for m in messages
    )


def _alternatives(form: Form, messages: list[dict], tools) -> Iterator[dict[str, Any]]:
    """Other values of what can matter for this conversation: one at a time, then several together."""
    others: dict[str, tuple] = {}
    if any(m["role"] == "assistant" and _wordless(m) for m in messages):
        others["empty"] = ("null", "text", "absent")
    if any(map(called, messages)):
        others["arguments"] = ("text" if form.arguments == "object" else "object",)
    if any(m["role"] == "developer" for m in messages):
        others["system"] = (True,)
    if tools and any("function" not in tool for tool in tools):
        others["wrapped"] = (True,)
    for size in range(1, len(others) + 1):
        for names in itertools.combinations(others, size):
            yield from (dict(zip(names, values, strict=True)) for values in itertools.product(*map(others.get, names)))


_REFUSED = (1, 0, 0, 0)


def _score(render: Render, form: Form, messages, tools) -> tuple[int, int, int, int]:
    """How badly the template shows a conversation in this form: (refused, pieces left out, None printed, thoughts left
    out), the smallest is best."""
    shown = form.apply(messages, tools)
    try:
        found = trace(render, *shown)
    except UserError:
        return _REFUSED
    missing = list(found.missing())
    thought = sum(piece.kind == "thought" for piece in missing)
    nothing = found.text.count("None") if any(m.get("content", "") is None for m in shown[0]) else 0
    return 0, len(missing) - thought, nothing, thought


class Known:
    """What one template was found to read, asked once with a conversation of marks."""

    def __init__(self, render: Render) -> None:
        self._render, self._found = render, {}

    def arguments(self) -> str:
        """ "text" if the template would print an object as Python does, with single quotes."""

        def ask() -> str:
            call = _call({"probe": STAND_IN})
            texts = [
                self._text([{"role": "assistant", "content": content, "tool_calls": [call]}]) for content in ("", None)
            ]
            python = (repr(STAND_IN), f"'{STAND_IN}'")
            return "text" if any(f"'probe': {shown}" in text for text in texts for shown in python) else "object"

        return self._once("arguments", ask)

    def thoughts(self) -> tuple[str, ...]:
        """The keys under which the template shows thoughts."""

        def ask() -> tuple[str, ...]:
            return tuple(
                key
                for key in THOUGHTS
                if any(
                    STAND_IN in self._text([{"role": "assistant", "content": "y", key: STAND_IN} | more])
                    for more in ({}, {"tool_calls": [_call({"k": "v"})]}, {"tool_calls": [_call('{"k": "v"}')]})
                )
            )

        return self._once("thoughts", ask)

    def _once(self, what: str, ask: Callable[[], Any]) -> Any:
        if what not in self._found:
            self._found[what] = ask()
        return self._found[what]

    def _text(self, answer: list[dict]) -> str:
        try:
            return self._render([{"role": "user", "content": "x"}, *answer], None)
        except UserError:
            return ""


def _call(arguments: Any) -> dict[str, Any]:
    return {"id": "123456789", "type": "function", "function": {"name": "f", "arguments": arguments}}
