"""A chat template taken apart: what is around each role's words, found by rendering conversations of marks.

Most templates are this regular. A Format is taken only if it renders a row of other conversations as the template does,
so that what is written for a program with another template language (ollama.py) says the same.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from anytune.errors import UserError
from anytune.gguf import GGUF
from anytune.text.chat import ChatTemplate
from anytune.text.tokenizer import Tokenizer
from anytune.text.vocabulary import CONTROL, USER

SYSTEM = "Answer briefly.\nBe kind: x < y & z."
S, U, A, V = "Qsystemq", "Quserq", "Qanswerq", "Qagainq"  # words that no template has or changes
Around = tuple[str, str]


@dataclass(frozen=True)
class Format:
    """What comes before and after the words of each role.

    system: None where the template has no place for it. place: "turn" (one of its own), or "first" or "last": before
    the user's words of that turn. start: what begins a conversation without system's words.
    bos: the BOS token in front of every one, where programs put it there by themselves; turn_bos: whether it also
    is
    before each of the user's turns. prompt: what asks for an answer.
    """

    bos: str
    start: str
    system: Around | None
    place: str
    user: Around
    assistant: Around
    prompt: str
    turn_bos: bool = False

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The conversation with the prompt for an answer; system's words may be its first message."""
        out, pending, first = [self.bos], "", True
        if messages[0]["role"] != "system":
            out.append(self.start)
        for at, message in enumerate(messages):
            words = message["content"]
            if message["role"] == "system":
                words = self.system[0] + words + self.system[1]
                pending = "" if self.place == "turn" else words
                out.append(words if self.place == "turn" else "")
            elif message["role"] == "user":
                now = pending and (self.place == "first" or at == len(messages) - 1)
                out += [
                    self.bos if self.turn_bos and not first else "",
                    self.user[0],
                    pending if now else "",
                    words,
                    self.user[1],
                ]
                pending, first = "" if now else pending, False
            else:
                out.append(self.assistant[0] + words + self.assistant[1])
        return "".join(out) + self.prompt


def take_apart(template: ChatTemplate, tokenizer: Tokenizer | None = None) -> Format | None:
    """The template's Format, or None if it is not so regular."""

    def text(*words: str, prompt: bool = False) -> str:
        return template.render(_messages(*words), add_generation_prompt=prompt)

    bos = _text(tokenizer, tokenizer.bos) if tokenizer is not None and tokenizer.add_bos else ""
    try:
        before, after_user_asked = text(U, prompt=True).split(U)
        # not the last answer, where some show thoughts; and with a prompt, since some end without one in EOS
        rest = text(U, A, V, prompt=True).removeprefix(before + U)
        to_answer, between = rest.split(V)[0].split(A)
        whole = before.startswith(bos) and bos
        after_user = _shared(text(U).split(U)[1], to_answer, after_user_asked)
        after_answer = _shared(text(U, A).split(A)[1], between)
        before_user = between[len(after_answer) :]
        turn_bos = bool(whole) and before_user.startswith(bos) and before == before_user
        start = before[len(bos) :] if whole else before
        before_user = before_user.removeprefix(bos) if turn_bos else before_user
        if not start.endswith(before_user):
            return None
        start = start[: len(start) - len(before_user)]
        system, place = _system(text, before_user, bos if whole else "")
    except (UserError, ValueError, IndexError):
        return None
    made = Format(
        bos if whole else "",
        start,
        system,
        place,
        (before_user, after_user),
        (to_answer[len(after_user) :], after_answer),
        after_user_asked[len(after_user) :],
        turn_bos,
    )
    places = ("first", "last") if place == "first" else (place,)
    return next((found for found in (replace(made, place=place) for place in places) if _same(found, template)), None)


def _shared(end: str, *others: str) -> str:
    """What a turn ends with: `end`, which it ends with as the last one, as far as the others begin with it; cut
    behind a
    line or a mark, so that no two different ones are parted in their middle."""
    common = os.path.commonprefix([end, *others])
    return common if common == end else common[: max(common.rfind(mark) for mark in "\n>]") + 1]


def _system(text: Any, before_user: str, bos: str) -> tuple[Around | None, str]:
    try:
        whole = text(S, U, prompt=True)
        before, between = whole.split(S)[0], whole.split(S)[1].split(U)[0]
    except (UserError, ValueError, IndexError):
        return None, "turn"
    before = before.removeprefix(bos)
    if before_user and between.endswith(before_user):
        return (before, between[: len(between) - len(before_user)]), "turn"
    if before.startswith(before_user):
        return (before[len(before_user) :], between), "first"
    return None, "turn"


def _same(made: Format, template: ChatTemplate) -> bool:
    """Whether both render some other conversations alike."""
    turns = ["What is 2 + 2?\n\n```\nprint(2)\n```", "It is 4.", 'And "then"?', "Then 'five', {ok}.", "Why?"]
    probes = [turns[:1], turns[:3], turns] + ([[SYSTEM, *turns[:n]] for n in (1, 3, 5)] if made.system else [])
    return all(
        _alike(made, template, messages)
        for messages in (_messages(*probe, system=probe[0] == SYSTEM) for probe in probes)
    )


def differences(made: Format, template: ChatTemplate) -> list[str]:
    """What the template does that a Format cannot say, in words for people, found by rendering what shows it."""
    calls = [{"function": {"name": "look", "arguments": {"at": "x"}}}]
    tool = {
        "type": "function",
        "function": {
            "name": "look",
            "description": "Look.",
            "parameters": {"type": "object", "properties": {"at": {"type": "string"}}},
        },
    }
    ask, told = {"role": "user", "content": "Look."}, []
    plain = _render(template, [ask])
    if not all(_alike(made, template, m) for m in (_messages(" a \n"), _messages("a", "\n b ", "c"))):
        told.append("it trims whitespace around messages, which is kept there")
    elif made.system and not _alike(made, template, _messages(" s \n", "a", system=True)):
        told.append("it trims whitespace around the system message, which is kept there")
    if not _alike(made, template, _messages("a", "<think>\nb\n</think>\n\nc", "d")):
        told.append("it drops the reasoning of earlier answers, which stays there if it is part of the answer")
    if (
        _render(template, [ask], [tool]) not in (plain, None)
        or _render(template, [ask, {"role": "assistant", "content": "", "tool_calls": calls}, ask]) is not None
        and "tool_calls" in template.source
    ):
        told.append("it supports tools, which are not available there")
    if "strftime_now" in template.source:
        told.append("it prints the date, which would stay today's")
    if not made.system:
        how = (
            "places the system message in its own way"
            if S in (_render(template, _messages(S, U)) or "")
            else "has no place for a system message"
        )
        told.append(f"it {how}, so it is dropped there")
    return told


def _alike(made: Format, template: ChatTemplate, messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether both say the same of a conversation; BOS in front is there once, whoever puts it."""
    wanted = _render(template, messages)
    return wanted is not None and made.render(messages).removeprefix(made.bos) == wanted.removeprefix(made.bos)


def _render(template: ChatTemplate, messages: Sequence[Mapping[str, Any]], tools: list | None = None) -> str | None:
    """The conversation with the prompt for an answer; None if the template refuses it."""
    try:
        return template.render(messages, tools, add_generation_prompt=True)
    except UserError:
        return None


def _messages(*words: str, system: bool | None = None) -> list[dict[str, str]]:
    """Turns in order, user first; system's words in front if the first are its."""
    found = [{"role": "system", "content": words[0]}] if system or system is None and words[0] == S else []
    turns = words[len(found) :]
    return found + [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]


def _text(tokenizer: Tokenizer, token: int | None) -> str:
    return "" if token is None else tokenizer.vocabulary.tokens[token]


def end_token(template: ChatTemplate, tokenizer: Tokenizer) -> int | None:
    """The special token that the template puts behind an answer, or None."""
    try:
        after = template.render(_messages(U, A)).split(A)[1]
    except (UserError, IndexError):
        return None
    ids = tokenizer.encode(after, special=True, bos=False)
    kinds = tokenizer.vocabulary.kinds
    return next((i for i in ids if kinds[i] & (CONTROL | USER)), None)


def turn_end(base: GGUF, changes: Mapping[str, Any]) -> dict[str, int]:
    """Metadata that makes llama.cpp stop where the template ends an answer, if it would not by itself."""
    source = changes.get("tokenizer.chat_template") or base.metadata.get("tokenizer.chat_template")
    if not isinstance(source, str):
        return {}
    try:
        tokenizer = Tokenizer(base.metadata)
        token = end_token(ChatTemplate(source, tokenizer), tokenizer)
    except UserError:
        return {}
    return {} if token is None or token in tokenizer.eog else {"tokenizer.ggml.eot_token_id": token}


def stop_texts(template: ChatTemplate, tokenizer: Tokenizer) -> list[str]:
    """The texts of the tokens that end an answer: the template's own, and the model's EOS and EOT."""
    ids = [end_token(template, tokenizer), tokenizer.eot, tokenizer.eos]
    return list(dict.fromkeys(_text(tokenizer, i) for i in ids if i is not None))
