"""All requests together on one backend: each step feeds every answer its next token, and prompts in between.

A slot keeps what it has computed after its answer ended, for the next request of the same mix that begins alike. What
was computed with one mix is never used with another.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from anytune.generation.conversation import common_prefix
from anytune.errors import UserError
from anytune.serve.answer import Answer, Event, Request
from anytune.serve.backend import Backend, Mix, Piece

PROMPT = 512  # prompt tokens of one step: answers under way wait no longer than that takes
WAITING = 1024  # requests that may wait


class Busy(UserError):
    """Too many requests wait."""


@dataclass
class Slot:
    """held: the tokens whose keys and values the backend has, computed with `mix`; prompted: how many of them were fed
    as a prompt; used: when it was last given out."""

    held: list[int] = field(default_factory=list)
    mix: Mix = ()
    prompted: int = 0
    answer: Answer | None = None
    used: int = 0


class Scheduler:
    """Owns a backend: everything is done in its thread. close() ends it."""

    def __init__(self, backend: Backend, tokenizer: Any):
        self.backend, self.tokenizer = backend, tokenizer
        self.slots = [Slot() for _ in range(backend.slots)]
        self.waiting: deque[Answer] = deque()
        self.calls: deque[tuple[Callable[[], Any], Future]] = deque()
        self.known: set[str] = set()  # digests of the backend's adapters
        self.retired: set[str] = set()
        self.wake, self.ended, self.turn = threading.Condition(), False, 0
        self.thread = threading.Thread(target=self._work, name="anytune-serve", daemon=True)
        self.thread.start()

    def submit(self, request: Request, deliver: Callable[[Event], None]) -> Answer:
        """Queue a request. Raises UserError for a prompt that is empty or too long, Busy where too many wait."""
        if not request.prompt:
            raise UserError("The prompt is empty.")
        if len(request.prompt) > self.backend.context:
            raise UserError(
                f"The prompt has {len(request.prompt)} tokens but the context holds {self.backend.context}: shorten "
                "it, or start the server with a larger -c."
            )
        answer = Answer(request, deliver)
        with self.wake:
            if len(self.waiting) >= WAITING:
                raise Busy(f"{WAITING} requests are waiting: ask again later.")
            self.waiting.append(answer)
            self.wake.notify()
        return answer

    def cancel(self, answer: Answer) -> None:
        """Nothing is delivered after the step under way."""
        answer.cancelled = True

    def call(self, work: Callable[[], Any]) -> Future:
        """Run work() between two steps, in the scheduler's thread."""
        made: Future = Future()
        with self.wake:
            self.calls.append((work, made))
            self.wake.notify()
        return made

    def add(self, digest: str, adapter: Any) -> Future:
        """Make an adapter known to the backend."""

        def work() -> None:
            self.retired.discard(digest)
            if digest not in self.known:
                self.backend.add(digest, adapter)
                self.known.add(digest)

        return self.call(work)

    def retire(self, digest: str) -> None:
        """Forget an adapter as soon as no answer under way needs it."""
        self.call(lambda: self.retired.add(digest))

    def embed(self, ids: list[int], mix: Mix) -> Future:
        """float32 [width], as Backend.embed()."""
        return self.call(lambda: self._embed(ids, mix))

    def close(self) -> None:
        with self.wake:
            self.ended = True
            self.wake.notify()
        self.thread.join()
        self.backend.close()

    # In the thread

    def _work(self) -> None:
        while True:
            with self.wake:
                self.wake.wait_for(
                    lambda: self.ended or self.calls or self.waiting or any(s.answer for s in self.slots)
                )
                if self.ended:
                    return
                calls = [self.calls.popleft() for _ in range(len(self.calls))]
            later = [call for call in calls if not self._called(*call)]
            self._drop_cancelled()
            self._forget()
            self._admit()
            self._step()
            with self.wake:
                self.calls.extendleft(reversed(later))

    def _called(self, work: Callable[[], Any], made: Future) -> bool:
        """False: it has to wait for a free slot."""
        try:
            made.set_result(work())
        except _NoSlot:
            return False
        except BaseException as error:
            made.set_exception(error)
        return True

    def _embed(self, ids: list[int], mix: Mix) -> Any:
        free = [number for number, slot in enumerate(self.slots) if slot.answer is None]
        if not free:
            raise _NoSlot
        number = min(free, key=lambda n: self.slots[n].used)
        self.slots[number].held = []
        self.backend.truncate(number, 0)
        return self.backend.embed(ids, mix, number)

    def _drop_cancelled(self) -> None:
        with self.wake:
            self.waiting = deque(answer for answer in self.waiting if not answer.cancelled)
        for slot in self.slots:
            if slot.answer is not None and slot.answer.cancelled:
                slot.answer = None

    def _forget(self) -> None:
        """Retired adapters that no answer needs."""
        if not self.retired:
            return
        with self.wake:
            answers = [*self.waiting, *(slot.answer for slot in self.slots if slot.answer)]
        needed = {digest for answer in answers for digest, _ in answer.request.mix}
        for digest in self.retired - needed:
            self.retired.discard(digest)
            self.known.discard(digest)
            self.backend.remove(digest)

    def _admit(self) -> None:
        while True:
            with self.wake:
                if not self.waiting or all(slot.answer for slot in self.slots):
                    return
                answer = self.waiting.popleft()
            try:
                answer.begin(self.tokenizer)
            except Exception as error:
                answer.fail(error)
                continue
            if answer.request.max_tokens == 0:
                answer.deliver(Event(finish="length"))
                continue
            self._place(answer)

    def _place(self, answer: Answer) -> None:
        """Give it the slot that holds most of its prompt, else the one that was unused for longest."""
        prompt, mix = answer.request.prompt, answer.request.mix
        free = [number for number, slot in enumerate(self.slots) if slot.answer is None]
        shared = {n: self._shared(self.slots[n], prompt, mix) for n in free}
        number = max(free, key=lambda n: (shared[n], -self.slots[n].used))
        if 2 * shared[number] < len(self.slots[number].held):  # most of another conversation would be lost
            number = min(free, key=lambda n: self.slots[n].used)
        slot = self.slots[number]
        self.turn += 1
        # the last token is always fed, as its logits are needed, and not alone: one row is rounded like an answer's
        self.backend.truncate(number, max(0, min(shared[number], len(prompt) - 2)))
        slot.held, slot.mix, slot.used, slot.answer = prompt[: self.backend.lengths[number]], mix, self.turn, answer
        slot.prompted = answer.cached = len(slot.held)
        answer.slot = number

    @staticmethod
    def _shared(slot: Slot, prompt: list[int], mix: Mix) -> int:
        """Tokens of a prompt that the slot holds as it would compute them: what was said is read again, many at once,
        which rounds differently than one by one."""
        return common_prefix(slot.held[: slot.prompted], prompt) if slot.mix == mix else 0

    def _step(self) -> None:
        pieces, room = [], PROMPT
        for number, slot in enumerate(self.slots):
            if slot.answer is None:
                continue
            ids = slot.answer.reply.prompt + slot.answer.reply.ids
            new = ids[len(slot.held) :]
            if len(new) > 1:
                count = min(len(new), room)
                count -= len(new) - count == 1
                new, room = new[: count if count > 1 else 0], room - count
            if new:
                pieces.append(Piece(number, new, slot.mix, len(slot.held) + len(new) == len(ids)))
        if not pieces:
            return
        try:
            found = self.backend.feed(pieces)
        except Exception as error:
            self._lose(pieces, error)
            return
        for piece in pieces:
            slot = self.slots[piece.slot]
            slot.held += piece.ids
            slot.prompted = min(len(slot.held), len(slot.answer.request.prompt))
        for number, logits in found.items():
            self._answered(self.slots[number], logits)

    def _answered(self, slot: Slot, logits: Any) -> None:
        answer = slot.answer
        if answer.cancelled:
            slot.answer = None
            return
        try:
            answer.step(logits, len(slot.held) >= self.backend.context)
        except Exception as error:
            answer.fail(error)
            slot.answer = None
        else:
            if answer.reply.finish is not None:
                slot.answer = None

    def _lose(self, pieces: list[Piece], error: Exception) -> None:
        """A step failed: its answers end, and what their slots hold is uncertain."""
        for piece in pieces:
            slot = self.slots[piece.slot]
            slot.held, slot.prompted, answer, slot.answer = [], 0, slot.answer, None
            self.backend.truncate(piece.slot, 0)
            answer.fail(error)


class _NoSlot(Exception):
    pass
