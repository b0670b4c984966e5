"""A chat template taken apart: what stands around each role's words, found by rendering conversations of marks.

Most templates are this regular. A Format is taken only if it renders a row of other conversations as the template does,
so that what is written for a program with another template language (ollama.py) says the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from anytune.errors import UserError
from anytune.gguf import GGUF
from anytune.text.chat import ChatTemplate
from anytune.text.tokenizer import Tokenizer
from anytune.text.vocabulary import CONTROL, USER

S, U, A, V = "Qsystemq", "Quserq", "Qanswerq", "Qagainq"  # words that no template has or changes
Around = tuple[str, str]


@dataclass(frozen=True)
class Format:
    """What stands before and after the words of each role.

    system: None where the template has no place for it. place: "turn" (one of its own), or "first" or "last": before
    the user's words of that turn. start: what begins a conversation without system's words; bos: the BOS token in
    front of every one, where programs put it there by themselves.
    prompt: what asks for an answer.
    """

    bos: str
    start: str
    system: Around | None
    place: str
    user: Around
    assistant: Around
    prompt: str

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The conversation with the prompt for an answer; system's words may be its first message."""
        out, pending = [self.bos], ""
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
                out.append(self.user[0] + (pending if now else "") + words + self.user[1])
                pending = "" if now else pending
            else:
                out.append(self.assistant[0] + words + self.assistant[1])
        return "".join(out) + self.prompt


def take_apart(template: ChatTemplate, tokenizer: Tokenizer | None = None) -> Format | None:
    """The template's Format, or None if it is not so regular."""
    def text(*words: str, prompt: bool = False) -> str:
        return template.render(_messages(*words), add_generation_prompt=prompt)

    try:
        alone, asked = text(U), text(U, prompt=True)
        before, after_user = alone.split(U)
        after_user_asked = asked.split(U)[1]
        if not after_user_asked.startswith(after_user) or not asked.startswith(before + U):
            return None
        # not the last answer, where some show thoughts
        to_answer, between = text(U, A, V).split(U)[1].split(V)[0].split(A)
        after_answer = text(U, A).split(A)[1]
        if not to_answer.startswith(after_user) or not between.startswith(after_answer):
            return None
        before_user = between[len(after_answer):]
        if not before.endswith(before_user):
            return None
        start = before[:len(before) - len(before_user)]
        bos_text = _text(tokenizer, tokenizer.bos) if tokenizer is not None and tokenizer.add_bos else ""
        bos = bos_text if bos_text and start.startswith(bos_text) else ""
        system, place = _system(text, before_user, bos)
    except (UserError, ValueError, IndexError):
        return None
    made = Format(bos, start[len(bos):], system, place, (before_user, after_user),
                  (to_answer[len(after_user):], after_answer), after_user_asked[len(after_user):])
    places = ("first", "last") if place == "first" else (place,)
    return next((found for found in (replace(made, place=place) for place in places) if _same(found, template)), None)


def _system(text: Any, before_user: str, bos: str) -> tuple[Around | None, str]:
    try:
        whole = text(S, U)
        before, between = whole.split(S)[0], whole.split(S)[1].split(U)[0]
    except (UserError, ValueError, IndexError):
        return None, "turn"
    before = before.removeprefix(bos)
    if before_user and between.endswith(before_user):
        return (before, between[:len(between) - len(before_user)]), "turn"
    if before.startswith(before_user):
        return (before[len(before_user):], between), "first"
    return None, "turn"


def _same(made: Format, template: ChatTemplate) -> bool:
    """Whether both render some other conversations alike."""
    system = "Answer briefly.\nBe kind: x < y & z."
    turns = ["What is 2 + 2?\n\n```\nprint(2)\n```", "It is 4.", "And \"then\"?", "Then 'five', {ok}.", "Why?"]
    probes = [turns[:1], turns[:3], turns] + ([[system, *turns[:n]] for n in (1, 3, 5)] if made.system else [])
    for probe in probes:
        messages = _messages(*probe, system=probe[0] == system)
        if made.render(messages) != template.render(messages, add_generation_prompt=True):
            return False
    return True


def _messages(*words: str, system: bool | None = None) -> list[dict[str, str]]:
    """Turns in order, user first; system's words in front if the first are its."""
    found = [{"role": "system", "content": words[0]}] if system or system is None and words[0] == S else []
    turns = words[len(found):]
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
