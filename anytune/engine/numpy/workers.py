"""A few threads that split one operation between them, without spinning.

BLAS runs with one thread inside each worker. Its own thread pool spins while it waits, so on a busy machine
two of its threads can fight for one core; these workers sleep, and they share the elementwise work as well.
NumPy's products and the Numba kernels release the interpreter lock, so the shares do run side by side.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable


class Workers:
    """`count` workers; the calling thread is worker 0."""

    def __init__(self, count: int):
        self.count = max(1, count)
        self._inbox = [queue.SimpleQueue() for _ in range(self.count - 1)]
        self._done: queue.SimpleQueue = queue.SimpleQueue()
        for number, inbox in enumerate(self._inbox, start=1):
            threading.Thread(target=self._serve, args=(number, inbox), daemon=True, name=f"anytune-{number}").start()

    def _serve(self, number: int, inbox: queue.SimpleQueue) -> None:
        while True:
            task = inbox.get()
            if task is None:
                return
            try:
                task(number)
                error = None
            except BaseException as problem:  # handed to the caller, who raises it
                error = problem
            task = None  # a sleeping worker must not keep an operation's arrays alive
            self._done.put(error)

    def run(self, task: Callable[[int], None]) -> None:
        """Call task(0) … task(count - 1) side by side, and return when all are done.

        Raises what a worker raised (the first one reported), after all have finished.
        """
        for inbox in self._inbox:
            inbox.put(task)
        first: BaseException | None = None
        try:
            task(0)
        except BaseException as problem:
            first = problem
        for _ in self._inbox:
            error = self._done.get()
            first = first or error
        if first is not None:
            raise first

    def rows(self, count: int, task: Callable[[int, int], None], at_least: int = 1) -> None:
        """Split `count` rows into one contiguous share a worker: task(low, high).

        Fewer than `at_least` rows a worker are not worth a hand-over: they run here.
        """
        if self.count == 1 or count < at_least * 2:
            task(0, count)
            return
        self.run(lambda number: task(*share(count, number, self.count)))

    def close(self) -> None:
        """End the threads; the workers cannot be used afterwards."""
        for inbox in self._inbox:
            inbox.put(None)
        self._inbox = []


def share(count: int, number: int, of: int, step: int = 1) -> tuple[int, int]:
    """The half-open range of share `number` out of `of`, its bounds multiples of `step` (but for the end)."""
    units = -(-count // step)
    return (min(count, units * number // of * step), min(count, units * (number + 1) // of * step))


def balance(costs: list[float], of: int) -> list[list[int]]:
    """Spread tasks over `of` workers, dearest first to the least loaded: lists of task numbers."""
    lists: list[list[int]] = [[] for _ in range(of)]
    load = [0.0] * of
    for task in sorted(range(len(costs)), key=lambda i: -costs[i]):
        number = load.index(min(load))
        lists[number].append(task)
        load[number] += costs[task]
    return lists
