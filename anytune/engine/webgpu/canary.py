"""A small computation with a known result, repeated now and then: a device that silently miscomputes is found out
while it trains."""

from __future__ import annotations

import numpy as np

from .arrays import Array
from .failures import DeviceError
from .kernels import optimizer as _kernels

EVERY = 64  # optimizer steps
SIZE = 4096


class Canary:
    """The sum of squares of a fixed vector: the same bits every time."""

    def __init__(self, engine):
        self.engine, self.steps = engine, 0
        self.values: Array | None = None
        self.known: bytes | None = None

    def look(self) -> None:
        """Called once a step. Raises DeviceError if the device no longer computes what it did."""
        self.steps += 1
        if self.steps % EVERY == 1:
            self.check()

    def check(self) -> None:
        e = self.engine
        if self.values is None:
            self.values, self.out = e.vector(np.linspace(-1.0, 1.0, SIZE, dtype=np.float32)), e.zeros(1)
        e.commands.write(self.out, np.full(1, np.nan, np.float32))
        e.commands.run(_kernels.square_sums(), [self.values, self.out], (SIZE, 0, 0), (1,))
        found, want = e.host(self.out), float(np.sum(np.linspace(-1.0, 1.0, SIZE) ** 2))
        if not abs(float(found[0]) - want) < 1e-3 * want or found.tobytes() != (self.known or found.tobytes()):
            raise DeviceError(
                "other",
                f"a sum that should be {want:.6g} came out as {float(found[0]):.6g}: the device computes wrongly",
            )
        self.known = found.tobytes()
