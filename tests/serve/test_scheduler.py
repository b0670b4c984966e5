"""The scheduler of answers on a backend that is made up: how many may wait, and what a failed step leaves."""

import queue
import threading

import numpy as np
import pytest

import anytune
from anytune.serve import scheduler as module
from anytune.serve.answer import Request
from anytune.serve.scheduler import Busy, Scheduler


class Backend:
    """One slot; each step waits for `go`, notes what it was fed, and raises what is in `errors`."""

    name, slots, context = "made up", 1, 64

    def __init__(self):
        self.lengths, self.fed, self.errors = [0], [], []
        self.stepping, self.go = threading.Event(), threading.Event()

    def feed(self, pieces):
        self.stepping.set()
        assert self.go.wait(30)
        if self.errors:
            raise self.errors.pop()
        self.fed += [list(piece.ids) for piece in pieces]
        self.lengths[0] += sum(len(piece.ids) for piece in pieces)
        return {piece.slot: 1e3 * np.eye(320, dtype=np.float32)[70] for piece in pieces if piece.wanted}

    def truncate(self, slot, length):
        self.lengths[slot] = min(self.lengths[slot], length)

    def close(self):
        pass


@pytest.fixture
def scheduler(files):
    with anytune.load(files / "tiny.gguf", device="numpy") as model:
        made = Scheduler(Backend(), model.tokenizer)
        yield made
        made.backend.go.set()
        made.close()


def last(events: queue.Queue):
    """The event with which an answer ends."""
    while not (event := events.get(timeout=30)).last:
        pass
    return event


def test_more_than_may_wait_are_refused_and_the_others_answered(scheduler, monkeypatch):
    monkeypatch.setattr(module, "WAITING", 2)
    events, request = queue.Queue(), Request([5, 6, 7], max_tokens=1)
    scheduler.submit(request, events.put)
    assert scheduler.backend.stepping.wait(30)  # it waits no more
    for _ in range(2):
        scheduler.submit(request, events.put)
    with pytest.raises(Busy, match="2 requests are waiting"):
        scheduler.submit(request, events.put)
    scheduler.backend.go.set()
    assert [last(events).finish for _ in range(3)] == ["length"] * 3


def test_what_a_failed_step_held_is_not_used_again(scheduler):
    backend, events, prompt = scheduler.backend, queue.Queue(), [5, 6, 7, 8, 9]
    backend.go.set()
    scheduler.submit(Request(prompt, max_tokens=1), events.put)
    assert last(events).finish == "length"
    backend.errors.append(RuntimeError("lost"))
    scheduler.submit(Request(prompt, max_tokens=1), events.put)
    assert str(last(events).error) == "lost"
    scheduler.submit(Request(prompt, max_tokens=2), events.put)
    assert last(events).finish == "length" and backend.fed == [prompt, prompt, [70]]
