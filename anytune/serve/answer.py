"""One answer: what was asked for, and how far it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from anytune.generation.generate import Reply, Writer
from anytune.serve.backend import Mix
from anytune.serve.choosing import Choice, Chosen, choose

if TYPE_CHECKING:
    import numpy as np

    from anytune.serve.grammar import Matcher


@dataclass(frozen=True)
class Request:
    """prompt: token ids; number: of this choice among those of one call, each of which draws differently;
    max_tokens: None: until the context is full; top: log-probabilities wanted per token, None: none; matcher(): follows
    the form that the answer must have; special: control tokens are part of the text."""

    prompt: list[int]
    mix: Mix = ()
    how: Choice = Choice()
    number: int = 0
    max_tokens: int | None = None
    stop: Sequence[str] = ()
    top: int | None = None
    matcher: Callable[[], Matcher] | None = None
    special: bool = False


@dataclass(frozen=True)
class Event:
    """What became certain: text, and the tokens that it came with. The last one has finish ("stop", "length") or
    error; cached: prompt tokens that had not to be computed."""

    text: str = ""
    tokens: tuple[Chosen, ...] = ()
    finish: str | None = None
    error: Exception | None = None
    cached: int = 0

    @property
    def last(self) -> bool:
        return self.finish is not None or self.error is not None


@dataclass(eq=False)
class Answer:
    """A request in the scheduler. deliver(Event) is called in the scheduler's thread."""

    request: Request
    deliver: Callable[[Event], None]
    slot: int = -1
    cached: int = 0
    cancelled: bool = False
    reply: Reply = field(init=False)
    writer: Writer = field(init=False)
    random: Any = field(init=False)
    matcher: Matcher | None = field(init=False, default=None)
    told: list[Chosen] = field(init=False, default_factory=list)  # tokens whose text is not certain yet

    def begin(self, tokenizer: Any) -> None:
        self.reply = Reply(list(self.request.prompt), started=time.perf_counter())
        self.writer = Writer(self.reply, tokenizer, self.request.stop, self.request.special)
        self.random = self.request.how.sampling.generator(self.request.number)
        self.matcher = self.request.matcher() if self.request.matcher else None

    def step(self, logits: np.ndarray, full: bool) -> None:
        """Choose the next token and report it. full: the context holds no further one."""
        request, reply = self.request, self.reply
        chosen = choose(logits, reply.prompt, reply.ids, request.how, self.random, self.matcher, request.top)
        if self.matcher is not None:
            self.matcher.accept(chosen.token)
        text = self.writer.add(chosen.token)
        if reply.finish is None and (full or len(reply.ids) == request.max_tokens):
            text += self.writer.end("length")
        ended = chosen.token in self.writer.eog
        if request.top is not None and not ended:
            self.told.append(chosen)
        if text or reply.finish:
            self.deliver(Event(text, tuple(self.told), reply.finish, cached=self.cached))
            self.told = []

    def fail(self, error: Exception) -> None:
        self.deliver(Event(error=error))
