"""Where a turn of the assistant ends: with the first token behind its words that ends a generation.

A template that ends a turn with nothing but the next one's header has no such token; then the model's own end-of-turn
token belongs there, or what was trained would never stop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from anytune.errors import UserError
from anytune.text.vocabulary import CONTROL, USER

_LONGEST = 256  # characters in which a special token is looked for


@dataclass(frozen=True)
class Turn:
    """[start, end) is learned. closer: the text of the end token that it ends with, None if nothing ends it; inserted:
    the template has none, and it is to be put at `end`."""

    start: int
    end: int
    closer: str | None = None
    inserted: bool = False


class Ends:
    """The ends of one conversation's turns. text: its rendering; for the rest see turns.Speech."""

    def __init__(self, tokenizer, template, form, messages: list, tools, text: str) -> None:
        self.tokenizer, self.template, self.form = tokenizer, template, form
        self.messages, self.tools, self.text = messages, tools, text

    def ended(self, start: int, end: int, after: int, i: int) -> Turn:
        """The turn of message i whose pieces end at `end`; after: where the next piece begins."""
        gap = self.text[end : self._next_header(end, after)]
        for ends in (self.eog, self._own_end):
            found = self.first_of(ends, end, end + len(gap))
            if found is not None:
                return Turn(start, *found)
        closing, alone = self._closing(i, end, after, gap)
        if self._leads(alone) and (token := self._leads(gap)):  # it ends otherwise here than where nothing follows
            return Turn(start, end + gap.index(token) + len(token), token)
        return self._with_own_end(start, end + len(closing.rstrip()))

    def _next_header(self, a: int, b: int) -> int:
        """Where what asks for an answer is in text[a:b]; b if it does not."""
        first = self._header_begins
        at = self.text.find(first, a, b) if len(first) > 1 else -1
        if at >= 0 and b == len(self.text) and self.text.startswith(self.header.strip(), at):
            return b  # no other turn follows: the answer itself goes on behind its thoughts
        return b if at < 0 else at

    @cached_property
    def _header_begins(self) -> str:
        return self._leads(self.header) or next(iter(self.header.split()), "")

    def _leads(self, text: str, last: bool = False) -> str:
        """The special token with which a text begins, or ends; "" if it does not."""
        vocabulary = self.tokenizer.vocabulary
        part = text.rstrip()[-_LONGEST:] if last else text.lstrip()[:_LONGEST]
        first = self.tokenizer.encode(part, special=True, bos=False)[-1 if last else 0 :][:1]
        return vocabulary.tokens[first[0]] if first and vocabulary.kinds[first[0]] & (CONTROL | USER) else ""

    def ended_tag(self, a: int, b: int, edges: Sequence[tuple[int, int]]) -> Turn:
        """The turn that generation tags mark as [a, b). edges: [start, end) of every piece."""
        ends = [*self.eog, *self._own_end]
        inside = self.first_of(ends, a, b)
        if inside is not None:
            return Turn(a, b, inside[1] if inside[0] == b else "")
        closer = self._leads(self.text[a:b], last=True)
        if self._own_end and closer:  # it ends otherwise in the middle than at the end
            return Turn(a, b, closer)
        after = min((x for x, _ in edges if x >= b), default=len(self.text))
        found = self.first_of(ends, b, after)
        if found is None:
            return self._with_own_end(a, b)
        return Turn(a, *found) if self.text[b : found[0]].strip() == found[1] else Turn(a, b)

    def _with_own_end(self, start: int, end: int) -> Turn:
        """Ended by the model's own end-of-turn token, if it has one that text can hold."""
        vocabulary = self.tokenizer.vocabulary
        for token in (self.tokenizer.eot, self.tokenizer.eos):
            if token is not None and vocabulary.kinds[token] & (CONTROL | USER):
                return Turn(start, end, vocabulary.tokens[token], inserted=True)
        return Turn(start, end)

    @cached_property
    def header(self) -> str:
        """What asks for an answer, where nothing else is known."""
        return self.template.header or self.template.header_for(self.tools)

    def first_of(self, ends: list[str], a: int, b: int) -> tuple[int, str] | None:
        """(where it ends, its text) of the first of these tokens in text[a:b]; None if there is none."""
        found = [(at, -len(token), token) for token in ends if (at := self.text.find(token, a, b)) >= 0]
        return (min(found)[0] + len(min(found)[2]), min(found)[2]) if found else None

    @cached_property
    def eog(self) -> list[str]:
        """Texts of the tokens that end a generation."""
        vocabulary = self.tokenizer.vocabulary
        return [vocabulary.tokens[i] for i in self.tokenizer.eog if vocabulary.kinds[i] & (CONTROL | USER)]

    @cached_property
    def _own_end(self) -> list[str]:
        """The token that the template puts behind an answer, though the vocabulary does not know it for an end."""
        own = end_token(self.template, self.tokenizer)
        return [] if own is None else [self.tokenizer.vocabulary.tokens[own]]

    def _closing(self, i: int, end: int, after: int, gap: str) -> tuple[str, str]:
        """(what of the gap the template puts behind the turn before the next one begins, what it would put there if
        nothing followed)."""
        try:
            upto = self.template.render(self.messages[: i + 1], self.tools, form=self.form)
        except UserError:
            return "", ""
        if self.text.startswith(upto) and len(upto) >= end:
            return gap[: len(upto) - end], upto[end:]
        alone = self.template.trace(self.messages[: i + 1], self.tools, self.form)
        rest = alone.text[max((b for at in alone.places for _, b in at), default=len(alone.text)) :]
        return gap[: shared(gap, rest)], rest


def common(text: str, other: str) -> int:
    """The length of the longest beginning that two texts have in common."""
    low, high = 0, min(len(text), len(other)) + 1  # low is common, high is not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if text[low:middle] == other[low:middle] else (low, middle)
    return low


def shared(text: str, other: str) -> int:
    """How far two texts are the same; where both go on differently, to the end of a tag or a word."""
    same = common(text, other)
    if same in (len(text), len(other)):
        return same
    return max(text.rfind(char, 0, same) + 1 for char in "\n >]")


@lru_cache(maxsize=8)
def end_token(template, tokenizer) -> int | None:
    """The special token that the template puts behind an answer, or None."""
    mark = "Qanswerq"
    try:
        messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": mark}]
        after = template.render(messages).split(mark)[1]
    except (UserError, IndexError):
        return None
    kinds = tokenizer.vocabulary.kinds
    return next((i for i in tokenizer.encode(after, special=True, bos=False) if kinds[i] & (CONTROL | USER)), None)
