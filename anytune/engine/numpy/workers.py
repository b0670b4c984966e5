"""A few threads that share out one operation, without spinning.

An operation is cut by its shape alone into pieces of fixed size, and a worker takes the next piece when it is free. So
results do not depend on how many workers there are, and one whose core is busy with something else does less: who has
not begun when the pieces run out is not waited for.

Where there is a worker for every core, each has a core of its own. Left to itself, the scheduler wakes a worker on the
caller's core while its own is busy with another program, and the two then share one core until they are balanced again,
which takes longer than an operation does (docs/LOG.md).

BLAS runs with one thread inside each worker. Its own thread pool spins while it waits, so on a busy machine two of its
threads can fight for one core; these workers sleep, and they share the elementwise work as well. NumPy's products and
the Numba kernels release the interpreter lock, so the pieces do run side by side.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Callable, Iterator

Job = Callable[[int], None]  # called with the number of the worker that runs it, whose scratch it may use
PIECES = 16  # that an operation is cut into at most, if each is still worth handing over


class _Shared:
    """A task that several workers run; whoever comes after it was closed finds nothing to do."""

    def __init__(self, task: Job):
        self._task: Job | None = task
        self._began = 0
        self._lock = threading.Lock()
        self.ended: queue.SimpleQueue = queue.SimpleQueue()  # for each worker that began, what it raised or None

    def join(self, number: int) -> None:
        with self._lock:
            task = self._task
            if task is None:
                return
            self._began += 1
        try:
            task(number)
            error = None
        except BaseException as problem:  # handed to the caller, who raises it
            error = problem
        del task  # a sleeping worker must not keep an operation's arrays alive
        self.ended.put(error)

    def close(self) -> int:
        """From now on nobody begins; returns how many did."""
        with self._lock:
            self._task = None
            return self._began


class Workers:
    """`count` workers; the calling thread is worker 0."""

    def __init__(self, count: int):
        self.count = max(1, count)
        self._cores = cores_of(self.count)
        self._inbox = [queue.SimpleQueue() for _ in range(self.count - 1)]
        for number, inbox in enumerate(self._inbox, start=1):
            threading.Thread(target=self._serve, args=(number, inbox), daemon=True, name=f"anytune-{number}").start()

    def _serve(self, number: int, inbox: queue.SimpleQueue) -> None:
        with on_core(self._cores, number):
            while (shared := inbox.get()) is not None:
                shared.join(number)

    def _everywhere(self, task: Job, most: int) -> None:
        """Call task(0), and task(number) on other workers, `most` in all at most; return when all that began are done.

        A call may begin late or never, so what is to be done must be done when those that began have returned. Raises
        what a call raised (the first one reported), after all have finished.
        """
        shared = _Shared(task)
        for inbox in self._inbox[: most - 1]:
            inbox.put(shared)
        first: BaseException | None = None
        with on_core(self._cores, 0):
            try:
                task(0)
            except BaseException as problem:
                first = problem
            for _ in range(shared.close()):
                error = shared.ended.get()
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
        for inbox in self._inbox:
            inbox.put(None)
        self._inbox = []


def cores_of(count: int) -> list[int]:
    """A core for each of `count` workers, the one that this thread runs on first; [] unless they need all cores."""
    if count < 2 or not hasattr(os, "sched_setaffinity"):
        return []
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) != count:
        return []
    try:  # field 39 of the thread's status is its core; the name before it, in brackets, may hold anything
        with open("/proc/thread-self/stat", "rb") as file:
            first = cores.index(int(file.read().rpartition(b")")[2].split()[36]))
    except (OSError, ValueError, IndexError):
        first = 0
    return cores[first:] + cores[:first]


@contextlib.contextmanager
def on_core(cores: list[int], number: int) -> Iterator[None]:
    """This thread stays on its core; afterwards it may use all of them again, and so may what it starts."""
    try:
        if cores:
            os.sched_setaffinity(0, {cores[number]})
    except OSError:  # not permitted, or the core is gone: any core then
        cores = []
    try:
        yield
    finally:
        if cores:
            with contextlib.suppress(OSError):
                os.sched_setaffinity(0, cores)


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
