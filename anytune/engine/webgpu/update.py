"""Clipping and AdamW on the device, without waiting for it: the host reads the norm later.

A step whose loss or gradient is not finite changes nothing, and neither do the steps that were queued behind it, until
the host loads a state.
"""

from __future__ import annotations

import math

import numpy as np

from .arrays import Array, cuts
from .device import WORKGROUPS
from .kernels import optimizer as _kernels

LOSS = 2  # place of the summed loss in `state`
ROW = WORKGROUPS * 256  # elements of one row of workgroups


class Updater:
    """The optimizer's small arrays for one engine."""

    def __init__(self, engine):
        self.engine = engine
        self.state: Array | None = None
        self.hyper: Array | None = None
        self.partial: Array | None = None

    def ready(self) -> None:
        if self.state is None:
            self.state, self.hyper = self.engine.zeros(4), self.engine.zeros(9)

    def loaded(self) -> None:
        """Parameters were written from outside: forget a halt."""
        if self.state is not None:
            self.engine.commands.write(self.state, np.zeros(4, np.float32))

    def watch(self, loss: Array) -> None:
        """Part of the step's loss, so that a NaN there is known on the device."""
        self.ready()
        self.engine.commands.run(_kernels.add_up(), [loss, self.state], (1, 0, LOSS, 1), (1,))

    def adamw(
        self,
        w: Array,
        g: Array,
        m: Array,
        v: Array,
        cut: int,
        rates,
        step: int,
        beta1: float,
        beta2: float,
        eps: float,
        decay: float,
        max_norm: float,
    ):
        """See base.py."""
        self.ready()
        e, size = self.engine, w.size
        most = min((e.device.max_binding - 512) // 4, WORKGROUPS * _kernels.PIECE)
        pieces = -(-size // _kernels.PIECE) + -(-size // most)
        if self.partial is None or self.partial.size < pieces:
            self.partial = e.zeros(pieces)
        hyper = [rates[0], rates[1], 1.0 - beta1**step, 1.0 - beta2**step, beta1, beta2, eps, decay, max_norm]
        e.commands.write(self.hyper, np.array(hyper, np.float32))
        done = square_sums(e, [(g, low, high) for low, high in cuts(size, most)], self.partial)
        e.commands.run(_kernels.clip(), [self.partial, self.hyper, self.state], (done,), (1,))
        for low, high in cuts(size, most):
            held = [a.span(low, high) for a in (w, g, m, v)]
            count = high - low
            e.commands.run(
                _kernels.adamw(),
                [*held, self.hyper, self.state],
                (count, *(b.shift for b in held), max(0, min(cut - low, count))),
                (min(WORKGROUPS, -(-count // 256)), -(-count // ROW)),
                20.0 * count,
            )
        return e.readback.post(self.state, 2, _norm)


def square_sums(e, pieces: list[tuple[Array, int, int]], partial: Array) -> int:
    """Sums of squares of vectors' elements, (vector, first, last) each, into partial -> how many sums there are."""
    done = 0
    for g, low, high in pieces:
        held, groups = g.span(low, high), -(-(high - low) // _kernels.PIECE)
        numbers = (high - low, held.shift, done)
        e.commands.run(_kernels.square_sums(), [held, partial], numbers, (groups,), 2.0 * (high - low))
        done += groups
    return done


def _norm(values) -> float:
    """The norm; NaN once the run has halted."""
    return float(values[0]) if not values[1] else math.nan
