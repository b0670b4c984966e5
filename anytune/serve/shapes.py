"""Answers as they grow, in the form of one of OpenAI's operations."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from anytune.serve import forms
from anytune.serve.answer import Event
from anytune.serve.bodies import Chat, Completion
from anytune.serve.choosing import Chosen
from anytune.serve.service import Call
from anytune.serve.tooling import as_openai


class Shape(Protocol):
    def add(self, number: int, event: Event) -> None:
        """Take in what answer `number` said."""

    def whole(self) -> dict[str, Any]:
        """The body of an answer that is sent at once."""

    def begin(self) -> Iterator[dict[str, Any]]:
        """What a stream begins with."""

    def chunks(self, number: int, event: Event) -> Iterator[dict[str, Any]]:
        """What a stream says of an event."""

    def usage(self, found: dict[str, Any]) -> dict[str, Any]:
        """The chunk that tells what was used."""


@dataclass
class Part:
    """One answer so far. sent: characters of its text that a stream has told."""

    text: str = ""
    tokens: list[Chosen] = field(default_factory=list)
    finish: str | None = None
    sent: int = 0

    def add(self, event: Event) -> None:
        self.text += event.text
        self.tokens += event.tokens
        self.finish = event.finish


class ChatShape:
    """chat.completion and its chunks. With tools, what may be a call is held back until the answer ends."""

    def __init__(self, tokenizer: Any, body: Chat, call: Call):
        self.words, self.body, self.call = forms.Words(tokenizer), body, call
        self.parts = [Part() for _ in call.requests]
        self.head = forms.head(f"chatcmpl-{secrets.token_hex(12)}", "chat.completion", call.label)
        self.chunk = self.head | {"object": "chat.completion.chunk"}
        if body.include_usage:
            self.chunk["usage"] = None

    def add(self, number: int, event: Event) -> None:
        self.parts[number].add(event)

    def whole(self) -> dict[str, Any]:
        choices = []
        for number, part in enumerate(self.parts):
            text, calls = self._calls(part)
            message: dict[str, Any] = {
                "role": "assistant",
                "content": text if text or not calls else None,
                "refusal": None,
            }
            if calls:
                message["tool_calls"] = calls
            choices.append(
                {
                    "index": number,
                    "message": message,
                    "finish_reason": "tool_calls" if calls else part.finish,
                    "logprobs": self._logprobs(part.tokens),
                }
            )
        return self.head | {"choices": choices}

    def begin(self) -> Iterator[dict[str, Any]]:
        for number in range(len(self.parts)):
            yield self._chunk(number, {"role": "assistant", "content": ""})

    def chunks(self, number: int, event: Event) -> Iterator[dict[str, Any]]:
        part = self.parts[number]
        part.add(event)
        calls: list[dict[str, Any]] = []
        text = part.text[part.sent : self._certain(part)]
        if event.finish is not None:
            whole, calls = self._calls(part)
            text = whole[part.sent :]
        part.sent += len(text)
        if text or event.tokens:
            yield self._chunk(number, {"content": text}, event.tokens)
        for index, call in enumerate(calls):
            yield self._chunk(number, {"tool_calls": [{"index": index, **call}]})
        if event.finish is not None:
            yield self._chunk(number, {}, finish="tool_calls" if calls else event.finish)

    def usage(self, found: dict[str, Any]) -> dict[str, Any]:
        return self.chunk | {"choices": [], "usage": found}

    def _certain(self, part: Part) -> int:
        """Characters that are words whatever follows."""
        if self.call.tooling is None:
            return len(part.text)
        marker = self.call.tooling.form.marker
        if not marker:
            return 0 if not part.text.strip() or part.text.lstrip().startswith("{") else len(part.text)
        at = part.text.find(marker)
        if at < 0:  # the end may be how a marker begins
            at = next(
                (
                    len(part.text) - n
                    for n in range(min(len(marker), len(part.text)), 0, -1)
                    if part.text.endswith(marker[:n])
                ),
                len(part.text),
            )
        return len(part.text[:at].rstrip())

    def _calls(self, part: Part) -> tuple[str, list[dict[str, Any]]]:
        if self.call.tooling is None:
            return part.text, []
        text, calls = self.call.tooling.form.parse(part.text)
        return text, as_openai(calls)

    def _logprobs(self, tokens: Any) -> dict[str, Any] | None:
        return self.words.chat_logprobs(tokens) if self.body.logprobs else None

    def _chunk(self, number: int, delta: dict[str, Any], tokens: Any = (), finish: str | None = None) -> dict[str, Any]:
        logprobs = self._logprobs(tokens) if tokens else None
        return self.chunk | {
            "choices": [{"index": number, "delta": delta, "logprobs": logprobs, "finish_reason": finish}]
        }


class TextShape:
    """text_completion, which has the same form in a stream."""

    def __init__(self, tokenizer: Any, body: Completion, call: Call):
        self.words, self.body = forms.Words(tokenizer), body
        self.parts = [Part() for _ in call.requests]
        self.echoes = [tokenizer.decode(request.prompt) if body.echo else "" for request in call.requests]
        self.head = forms.head(f"cmpl-{secrets.token_hex(12)}", "text_completion", call.label)

    def add(self, number: int, event: Event) -> None:
        self.parts[number].add(event)

    def whole(self) -> dict[str, Any]:
        return self.head | {
            "choices": [
                self._choice(number, self.echoes[number] + part.text, part.tokens, part.finish)
                for number, part in enumerate(self.parts)
            ]
        }

    def begin(self) -> Iterator[dict[str, Any]]:
        for number, echo in enumerate(self.echoes):
            if echo:
                yield self._told([self._choice(number, echo, (), None)])

    def chunks(self, number: int, event: Event) -> Iterator[dict[str, Any]]:
        part = self.parts[number]
        offset = sum(len(self.words.piece(made.token).decode("utf-8", "replace")) for made in part.tokens)
        part.tokens += event.tokens
        yield self._told([self._choice(number, event.text, event.tokens, event.finish, offset)])

    def usage(self, found: dict[str, Any]) -> dict[str, Any]:
        return self.head | {"choices": [], "usage": found}

    def _told(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return self.head | {"choices": choices} | ({"usage": None} if self.body.include_usage else {})

    def _choice(self, number: int, text: str, tokens: Any, finish: str | None, offset: int = 0) -> dict[str, Any]:
        logprobs = None if self.body.logprobs is None else self.words.text_logprobs(tokens, offset)
        return {"index": number, "text": text, "logprobs": logprobs, "finish_reason": finish}
