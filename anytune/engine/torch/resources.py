"""Who owns CUDA graphs, memory pools and pinned buffers, and when they go.

Their destructors speak to torch's allocators. Where a collector finds one while another pool is in use or a graph is
being recorded, that ends the process. So an owner's resources are referred to from here, not by the owner alone: an
owner that goes only leaves word, and what was its own is freed at the next safe point (sweep), newest first, which is
graphs before the pool that they were recorded into.
"""

from __future__ import annotations

import atexit
import collections
import contextlib
import gc
import itertools
import threading
from collections.abc import Iterator
from typing import Any, TypeVar

import torch

T = TypeVar("T")
_lock = threading.RLock()
_numbers = itertools.count()
_held: dict[int, list[Any]] = {}
_left: collections.deque[int] = collections.deque()  # owners that are gone; append() is atomic
_working, _collects = 0, False  # regions of working() under way; whether to collect again after


class Owned:
    """What one owner holds until free(), or until the owner itself is gone."""

    def __init__(self) -> None:
        self._number = next(_numbers)
        _held[self._number] = []

    def keep(self, thing: T) -> T:
        _held[self._number].append(thing)
        return thing

    def free(self) -> None:
        """Give up everything: now, or at the next safe point. The owner may keep() on."""
        _left.append(self._number)
        self._number = next(_numbers)
        _held[self._number] = []
        sweep()

    def __del__(self, leave=_left.append) -> None:
        leave(self._number)  # nothing else: a collector may run this anywhere, on any thread


def sweep() -> None:
    """A safe point: free what owners left. Does nothing while a pool is in use, or a graph recorded, on some thread."""
    if not _left:
        return
    with _lock:
        if _working:
            return
        things: list[Any] = []
        while _left:
            things = _held.pop(_left.popleft(), []) + things
        if things and torch.cuda.is_initialized():
            with contextlib.suppress(RuntimeError):  # a device that failed has nothing under way
                torch.cuda.synchronize()  # a graph may still run
        while things:
            things.pop()


@contextlib.contextmanager
def working() -> Iterator[None]:
    """A region in which no resource may be freed: a pool is in use, or a graph is being recorded."""
    global _working, _collects
    sweep()
    with _lock:
        if not _working:
            _collects = gc.isenabled()
            gc.disable()  # torch objects of others have no owner here
        _working += 1
    try:
        yield
    finally:
        with _lock:
            _working -= 1
            if not _working and _collects:
                gc.enable()


class Lane:
    """A stream for one owner alone; once that is gone it serves the next, since cuBLAS keeps a workspace for each."""

    _free: dict[torch.device, list[Any]] = collections.defaultdict(list)

    def __init__(self, device: torch.device):
        self._others = self._free[device]
        self.stream = self._others.pop() if self._others else torch.cuda.Stream(device)

    def __del__(self) -> None:
        self._others.append(self.stream)


def page_locked(size: int, dtype: torch.dtype) -> torch.Tensor:
    """Host memory that the device copies from and to by itself, content undefined."""
    return torch.empty(size, dtype=dtype, pin_memory=True)


@atexit.register
def _end() -> None:
    """While torch is still whole: references from here go; what live engines hold goes with them."""
    sweep()
    if not _working:
        _held.clear()
