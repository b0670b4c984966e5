"""A few threads that share out one operation, without spinning.

An operation is cut by its shape alone into pieces of fixed size, and a worker takes the next piece when it is free. So
results do not depend on how many workers there are, and one whose core is busy with something else does less.

BLAS runs with one thread inside each worker. Its own thread pool spins while it waits, so on a busy machine two of its
threads can fight for one core; these workers sleep, and they share the elementwise work as well. NumPy's products and
the Numba kernels release the interpreter lock, so the pieces do run side by side.
"""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Callable, Iterator

Job = Callable[[int], None]  # called with the number of the worker that runs it, whose scratch it may use
PIECES = 16  # that an operation is cut into at most, if each is still worth handing over


class Workers:
    """`count` workers; the calling thread is worker 0."""

    def __init__(self, count: int):
        self.count = max(1, count)
        self._inbox = [queue.SimpleQueue() for _ in range(self.count - 1)]
        self._done: queue.SimpleQueue = queue.SimpleQueue()
        for number, inbox in enumerate(self._inbox, start=1):
            name = f"anytune-{number}"
            threading.Thread(target=_serve, args=(number, inbox, self._done), daemon=True, name=name).start()
        self._end = weakref.finalize(self, _end, self._inbox)  # also where nobody calls close()

    def _everywhere(self, task: Job, most: int) -> None:
        """Call task(0) … task(count - 1) side by side on `most` workers at most, and return when all are done.

        Raises what a worker raised (the first one reported), after all have finished.
        """
        inboxes = self._inbox[: most - 1]
        for inbox in inboxes:
            inbox.put(task)
        first: BaseException | None = None
        try:
            task(0)
        except BaseException as problem:
            first = problem
        for _ in inboxes:
            error = self._done.get()
            first = first or error
        if first is not None:
            raise first

    def run(self, jobs: list[Job], small: bool = False) -> None:
        """Every job once. small: all together are not worth waking others, so they run here, in order."""
        if small or self.count == 1 or len(jobs) < 2:
            for job in jobs:
                job(0)
            return
        left = iter(jobs)  # shared: each next() gives one job to one worker

        def work(number: int) -> None:
            for job in left:
                job(number)

        self._everywhere(work, len(jobs))

    def chains(self, chains: list[list[Job]]) -> None:
        """Every job once; those of one chain in their order, one at a time, by whoever is free."""
        chains = [chain for chain in chains if chain]
        if self.count == 1 or len(chains) < 2:
            self.run([job for chain in chains for job in chain], small=True)
            return
        ready: queue.SimpleQueue = queue.SimpleQueue()
        for chain in chains:
            ready.put(iter(chain))
        open_chains = [None] * len(chains)

        def work(number: int) -> None:
            try:
                while (chain := ready.get()) is not None:
                    job = next(chain, None)
                    if job is not None:
                        job(number)
                        ready.put(chain)
                        continue
                    open_chains.pop()
                    if not open_chains:
                        break
            finally:  # all is done, or this worker failed: nobody waits for more
                for _ in range(self.count):
                    ready.put(None)

        self._everywhere(work, len(chains))

    def rows(self, count: int, task: Callable[[int, int], None], at_least: int = 1) -> None:
        """task(low, high) over pieces of `count` rows; fewer than `at_least` rows are not worth a hand-over."""
        self.run([lambda _, a=a, b=b: task(a, b) for a, b in pieces(0, count, piece(count, at_least))])

    def close(self) -> None:
        """End the threads; the workers cannot be used afterwards."""
        self._end()
        self._inbox = []


def _serve(number: int, inbox: queue.SimpleQueue, done: queue.SimpleQueue) -> None:
    """A worker's thread. It knows no Workers, which would live as long as it."""
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
        done.put(error)
        error = None  # nor the frames of a failed one


def _end(inboxes: list[queue.SimpleQueue]) -> None:
    for inbox in inboxes:
        inbox.put(None)


def piece(count: int, at_least: int, step: int = 1) -> int:
    """The size of pieces that `count` is cut into; a multiple of step.

    Their number is a power of two, so that 2, 4 or 8 workers get the same share: PIECES at most, and so few that each
    has `at_least`.
    """
    number = 1 << (max(1, min(PIECES, count // at_least)).bit_length() - 1)
    return -(-(-(-count // number)) // step) * step


def pieces(low: int, high: int, most: int, step: int = 1) -> Iterator[tuple[int, int]]:
    """Cut low…high into nearly equal runs of at most `most` (at least `step`), multiples of `step` but for the last."""
    count = -(-(high - low) // max(most // step * step, step))
    width = -(-(-(-(high - low) // max(count, 1))) // step) * step
    for first in range(low, high, max(width, 1)):
        yield first, min(first + width, high)


def balance(costs: list[float], of: int) -> list[list[int]]:
    """Spread tasks over `of` lists, dearest first to the least loaded: lists of task numbers."""
    lists: list[list[int]] = [[] for _ in range(of)]
    load = [0.0] * of
    for task in sorted(range(len(costs)), key=lambda i: -costs[i]):
        number = load.index(min(load))
        lists[number].append(task)
        load[number] += costs[task]
    return lists
