"""From operations to submits: parameters, bind groups and dispatches, cut so that no submit runs long.

A dispatch is a tuple of handles made once; what was recorded is encoded again without looking at anything. A driver
resets a device that works on one submit for seconds, so submits are cut by their cost (FLOPs), at the rate that a short
probe found (see tune.py), and smaller still if the first ones take longer than they should.
"""

from __future__ import annotations

import math
import struct
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from .arrays import Array, Bound
from .device import WORDS, Device
from .kernel import Kernel

PAGE = 256  # sets of parameters in one buffer
PAGES = 256  # pages before old ones are forgotten
LONGEST = 0.2  # seconds that one submit may take
FIRST = 2e8  # cost of submits before anything is known
CLASS = 8  # ratio between the classes of what a dispatch may cost
SHARE = 0.25  # of the probe's rate: what other kernels reach, about
WATCHED = 24  # submits of some size that are timed
MOST = 2000  # dispatches of one submit


class Commands:
    """The queue of one device."""

    def __init__(self, device: Device):
        self.device = device
        self.pending: list[tuple] = []
        self.cost = 0.0
        self.tape: list | None = None  # what is being recorded
        self.kept: dict[int, Any] = {}  # buffers of their own that the tape names
        self.rate, self.watched = 0.0, 0  # FLOP/s that submits are cut by, and how many were timed
        self._slots: dict[bytes, tuple[Any, int]] = {}
        self._page, self._mirror, self._used, self._sent = None, np.zeros(0, np.uint8), PAGE, PAGE
        self._pages = 0
        self.submits = self.dispatches = 0

    @property
    def most(self) -> float:
        """What one submit may cost."""
        return max(FIRST, self.rate * LONGEST)

    @property
    def piece(self) -> float:
        """What one dispatch may cost, in wide classes: it decides how sums are cut and so how they are rounded, and a
        slightly different measurement must not change a resumed run's bits."""
        return FIRST * CLASS ** int(math.log(self.most / FIRST, CLASS) + 1e-9)

    def run(
        self, kernel: Kernel, arrays: list[Array | Bound], numbers: tuple, grid: tuple[int, ...], cost: float = 0.0
    ) -> None:
        """Queue a dispatch. arrays: in the kernel's order; numbers: its parameters; grid: workgroups (x, y, z)."""
        bounds = [a if isinstance(a, Bound) else a.bind() for a in arrays]
        written = {b.buffer.serial for b, (_, writable, _) in zip(bounds, kernel.arrays) if writable}
        mixed = any(b.buffer.serial in written for b, (_, writable, _) in zip(bounds, kernel.arrays) if not writable)
        pipeline, layout, keep = self.device.pipeline(kernel, mixed)
        page, slot = self._parameters(kernel, numbers)
        key = (pipeline, id(page), slot, *((b.buffer.serial, b.start, b.size) for b in bounds))
        group, held = self.device.bind_group(layout, key, page, slot, [(b.buffer, b.start, b.size) for b in bounds])
        x, y, z = (*grid, 1, 1)[:3]
        command = (pipeline, group, x, y, z, cost, held, keep, page)
        if self.tape is not None:
            self.tape.append(command)
            for b in bounds:
                if b.buffer.owned:
                    self.kept[b.buffer.serial] = b.buffer
        self._queue(command)

    def _queue(self, command: tuple) -> None:
        if self.pending and (self.cost + command[5] > self.most or len(self.pending) >= MOST):
            self.flush()
        self.pending.append(command)
        self.cost += command[5]

    def _parameters(self, kernel: Kernel, numbers: tuple) -> tuple[Any, int]:
        kinds = "".join({"u32": "I", "i32": "i", "f32": "f"}[kind] for _, kind in kernel.fields)
        data = struct.pack(f"<{kinds}", *numbers)
        known = self._slots.get(data)
        if known is None:
            if self._used == PAGE:
                self._next_page()
            at = self._used * WORDS * 4
            self._mirror[at : at + len(data)] = np.frombuffer(data, np.uint8)
            known = self._slots[data] = (self._page, self._used)
            self._used += 1
        return known

    def _next_page(self) -> None:
        self._send()
        if self._pages == PAGES:  # recordings keep the pages that they name
            self._slots.clear()
            self.device.forget_groups()
            self._pages = 0
        self._page, self._mirror = self.device.uniforms(PAGE), np.zeros(PAGE * WORDS * 4, np.uint8)
        self._used = self._sent = 0
        self._pages += 1

    def _send(self) -> None:
        """Upload the parameters that the device lacks. A slot is written once: work under way sees no change."""
        if self._sent < self._used and self._page is not None:
            low, high = self._sent * WORDS * 4, self._used * WORDS * 4
            self.device.write(self._page, low, self._mirror[low:high])
            self._sent = self._used

    def write(self, target: Array, values: np.ndarray) -> None:
        """4-byte values over an array's own buffer range, in order with what was queued."""
        self.flush()
        self.device.write(target.buffer.raw, 4 * target.at, values)

    def upload(self, action: Callable[[], None]) -> None:
        """Something that writes to the device in the order of the queue; recorded, it is done at each replay."""
        if self.tape is not None:
            self.tape.append(action)
        self.flush()
        action()

    def flush(self) -> None:
        """Submit what is queued."""
        self._send()
        if self.pending:
            pending, cost = self.pending, self.cost
            self.pending, self.cost = [], 0.0
            watched = self.rate and self.watched < WATCHED and cost > self.most / 8
            if watched:
                self.device.wait()
            begun = time.perf_counter()
            self.device.submit(pending)
            self.submits += 1
            self.dispatches += len(pending)
            if watched:
                self.device.wait()
                self.watched += 1
                seconds = time.perf_counter() - begun
                if seconds > LONGEST:
                    self.rate = min(self.rate, cost / seconds)
        self.device.free_dropped()

    def record(self) -> None:
        """Start to record what is queued."""
        self.tape, self.kept = [], {}

    def recorded(self) -> tuple[list, dict]:
        """(the tape, buffers to keep with it) since record()."""
        tape, self.tape = self.tape, None
        kept, self.kept = self.kept, {}
        return tape or [], kept

    def play(self, tape: list) -> None:
        for entry in tape:
            if isinstance(entry, tuple):
                self._queue(entry)
            else:
                self.flush()
                entry()
        self.flush()

    def discard(self) -> None:
        """Forget what is queued or being recorded, after a failure."""
        self.pending, self.cost, self.tape, self.kept = [], 0.0, None, {}
