"""Where the assistant speaks in a rendered conversation, in characters: from where the model takes over to its end.

A turn begins behind the generation prompt. Where the conversation up to it does not render as the beginning of the
whole one (templates take earlier thoughts away, or open a thought that the answer does not have), the prompt is looked
for between the messages' own words, whose places trace.py knows; and where there is none, a turn begins where plain
words would. It ends with the first token behind its words that ends a generation.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from anytune.errors import UserError
from anytune.text.ends import Ends, Turn, common, shared
from anytune.text.trace import STAND_IN, THOUGHT_TAG, Piece, Trace, opens_thought

_EMPTY_THOUGHT = re.compile(rf"\s*(?:(?:{THOUGHT_TAG.pattern})\s*)+", re.IGNORECASE)


@dataclass(frozen=True)
class _Run:
    """Consecutive pieces of one message: [start, end); before: where the piece before it ends, after: where the next
    one begins."""

    start: int
    end: int
    before: int
    after: int
    kind: str


class Speech:
    """The turns of one conversation. messages, tools: normalised; found: their trace."""

    def __init__(self, tokenizer, template, form, messages: Sequence[Mapping], tools, found: Trace) -> None:
        self.template, self.form = template, form
        self.messages, self.tools, self.trace, self.text = list(messages), tools, found, found.text
        self._ends = Ends(tokenizer, template, form, self.messages, tools, found.text)

    def turns(self, learned: Sequence[int]) -> list[Turn]:
        """The turns of the messages with these indexes, in order."""
        found = []
        for i in learned:
            runs = self._runs(i) or self._empty(i)
            begin = self._beginning(i, runs[0]) if runs else 0
            for number, run in enumerate(runs):
                if number:
                    begin = self._again(begin, runs[0], run)
                found.append(self._ends.ended(self._start(begin, run), run.end, run.after, i))
        return found

    def tagged(self, spans: Sequence[tuple[int, int]], learned: Sequence[int]) -> list[Turn]:
        """The turns of these messages where the template marks what is learned, with generation tags."""
        wanted, found = set(learned), []
        owned = [self._owners(a, b) for a, b in spans]
        for (a, b), owners, following in zip(spans, owned, [*owned[1:], None], strict=True):
            if owners <= wanted:  # only the last of a message's tags has its end
                found.append(Turn(a, b, "") if owners == following else self._ends.ended_tag(a, b, self._edges))
            elif owners & wanted:
                raise UserError(
                    "The chat template's generation tags enclose several messages, but not all of them are to be "
                    "learned."
                )
        return found

    # Where the pieces are

    @cached_property
    def _spans(self) -> list[tuple[int, int, Piece]]:
        """Each piece where it is shown first."""
        shown = [(*at[0], piece) for piece, at in zip(self.trace.pieces, self.trace.places, strict=True) if at]
        return sorted(shown, key=lambda span: span[:2])

    @cached_property
    def _edges(self) -> list[tuple[int, int]]:
        return sorted(place for at in self.trace.places for place in at)

    def _runs(self, i: int) -> list[_Run]:
        """Tools' answers, and end tokens between its parts, cut a message into several."""
        runs: list[list[tuple[int, int, Piece]]] = []
        last = None
        for span in self._spans:
            if span[2].owner == i:
                if last != i or self._ends.first_of(self._ends.eog, max(s[1] for s in runs[-1]), span[0]):
                    runs.append([])
                runs[-1].append(span)
            last = span[2].owner
        return [self._run(run[0][0], max(span[1] for span in run), run[0][2].kind) for run in runs]

    def _run(self, start: int, end: int, kind: str) -> _Run:
        before = max((b for _, b in self._edges if b <= start), default=0)
        after = min((a for a, b in self._edges if a >= end and b > end), default=len(self.text))
        return _Run(start, end, before, after, kind)

    def _empty(self, i: int) -> list[_Run]:
        """A message that says nothing still has an end."""
        at = self._plain_words(i)
        return [] if at is None else [self._run(at, at, "words")]

    def _owners(self, a: int, b: int) -> set[int]:
        """The messages that the span [a, b) shows; of a span without any words, the one that it follows."""
        inside = {piece.owner for x, y, piece in self._spans if x < b and y > a}
        if inside:
            return inside
        before = max((piece.owner for _, y, piece in self._spans if y <= a), default=-1)
        if before >= 0 and self.messages[before]["role"] == "assistant":
            return {before}
        following = (k for k in range(before + 1, len(self.messages)) if self.messages[k]["role"] == "assistant")
        return {next(following, before)}

    # Where a turn begins

    def _beginning(self, i: int, run: _Run) -> int:
        asked = self._render(self.messages[:i], True)
        own = self._asks(asked, i)
        spoken, gap = self.text[: run.start], self.text[run.before : run.start]
        left = shared(spoken, asked) if own else -1  # where the text leaves the prompt
        if left == len(asked or "") and left >= run.before:
            return left
        for header in filter(None, (own, self._ends.header)):
            if header in gap:
                return run.before + gap.rindex(header) + len(header)
        if own and left > len(asked) - len(own) and left >= run.before:  # within what asks for an answer
            return _unopened(spoken, left + _part(spoken[left:], own))
        at = self._behind_prompt(i, run, gap) if own else None
        if at is None:
            at = self._plain_words(i, run)
        if at is None and run.kind != "words":
            at = self._behind_prompt(i, run, gap)
        if at is None or at < run.before:
            at = run.start
        lead = self.text[run.before : at]  # a space there is part of the first token
        return at - (len(lead) - len(lead.rstrip(" ")))

    def _asks(self, asked: str | None, i: int) -> str:
        """What asks for an answer in the prompt of the messages before i."""
        if asked and self.template.header and asked.endswith(self.template.header):
            return self.template.header
        without = self._render(self.messages[:i], False) if asked else None
        return asked[len(without) :] if without is not None and asked.startswith(without) else ""

    def _behind_prompt(self, i: int, run: _Run, gap: str) -> int | None:
        """Behind what a prompt of the messages before i has behind their last words; None if the gap has none of it."""
        try:
            prompt = self.template.trace(self.messages[:i], self.tools, self.form, add_generation_prompt=True)
        except UserError:
            return None
        tail = prompt.text[max((b for at in prompt.places for _, b in at), default=len(prompt.text)) :]
        same = shared(gap, tail)
        return run.before + (same if same == len(tail) else _unopened(gap, same)) if same else None

    def _plain_words(self, i: int, run: _Run | None = None) -> int | None:
        """Where the words of message i would begin if it had nothing else; None if that cannot be known.

        run: where it has something else, and so may part from that rendering a little earlier.
        """
        words = {"role": "assistant", "content": STAND_IN}
        for messages in ([*self.messages[:i], words, *self.messages[i + 1 :]], [*self.messages[:i], words]):
            changed = self._render(messages, False)
            at = changed.find(STAND_IN) if changed else -1
            if at >= 0 and self.text[:at] == changed[:at]:
                return at
            if run and at >= 0 and run.kind != "words":
                same = shared(self.text[: run.start], changed)
                if same > run.before:
                    return same
        return None

    def _again(self, begin: int, first: _Run, run: _Run) -> int:
        """Where a message goes on behind a tool's answer or an end: with what stood before its first piece, if that is
        there."""
        gap = self.text[run.before : run.start]
        header = _part(gap, self._ends.header)
        if header:
            return run.before + header
        lead = self.text[begin : first.start]
        same = common(lead[::-1], gap[::-1]) if run.kind != "words" else 0
        return run.start - same

    def _start(self, begin: int, run: _Run) -> int:
        """Without the empty thought that a template puts there by itself."""
        if run.kind == "thought":  # an empty one may be before the answer's own
            tags = list(THOUGHT_TAG.finditer(self.text, begin, run.start))
            return tags[-1].start() if len(tags) > 1 and opens_thought(tags[-1][0]) else begin
        empty = _EMPTY_THOUGHT.match(self.text, begin, run.start)
        return empty.end() if empty else begin

    def _render(self, messages: list, prompt: bool) -> str | None:
        """The text of a part of the conversation; None if the template refuses it, as some do with a part."""
        try:
            return self.template.render(messages, self.tools, add_generation_prompt=prompt, form=self.form)
        except UserError:
            return None


def _unopened(text: str, at: int) -> int:
    """Before a thought that the prompt opens (and may close), and the text goes on with otherwise."""
    tags = [tag for tag in THOUGHT_TAG.finditer(text, 0, at) if not text[tag.end() : at].strip()]
    return tags[-1].start() if tags and opens_thought(tags[-1][0]) else at


def _part(gap: str, header: str) -> int:
    """Where the gap leaves what asks for an answer, if it has the beginning of it; 0 if not."""
    first = re.match(r"\s*(?:<[^<>]*>|\S+)", header)
    at = gap.rfind(first[0]) if first else -1
    return at + shared(gap[at:], header) if at >= 0 else 0
