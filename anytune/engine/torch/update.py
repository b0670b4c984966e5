"""Clipping and AdamW on the device, without asking it anything: the host learns the norm when it is done.

A step whose loss or gradient is not finite changes nothing, and neither do the steps that were queued behind it, until
the host loads a state. After each update the pairs are written beside the weights of every dense group.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from .replay import capture
from .resources import Owned

Tensor = torch.Tensor
NORM, HALT, LOSS = 0, 1, 2  # places in `state`


class Updater:
    """The optimizer's small tensors for one engine."""

    def __init__(self, engine):
        self.engine = engine
        self.arena, self.parameters, self.table = None, None, None
        self.state = self.hyper = self.partials = self.outcome = None
        self.seen: tuple | None = None  # the vectors of the update before, and its graph once it is recorded
        self.graph: torch.cuda.CUDAGraph | None = None
        self.graphs = Owned()

    def layout(self, arena: Tensor, parameters: Tensor, table) -> None:
        """The matrices of dense groups, the flat parameters that their pairs are views of, and where each goes."""
        self.arena, self.parameters, self.table = arena, parameters, table
        self.forget()
        self.loaded()

    def forget(self) -> None:
        """Free the recorded update."""
        self.seen = self.graph = None
        self.graphs.free()

    def loaded(self) -> None:
        """Parameters were written from outside: forget a halt, and put the pairs in place."""
        self._ready()
        self.state.zero_()
        self.place()

    def place(self) -> None:
        if self.table is not None:
            self.engine.f.place(self.parameters, self.table, self.arena)

    def saw(self, loss: Tensor) -> None:
        """Part of the step's loss, so that a NaN there is known on the device."""
        self._ready()
        self.state[LOSS] += loss.to(torch.float32)

    def _ready(self) -> None:
        if self.state is None:
            self.state = torch.zeros(4, dtype=torch.float32, device=self.engine.device)
            self.hyper = torch.zeros(9, dtype=torch.float32, device=self.engine.device)
            self.outcome = (
                torch.zeros(2, dtype=torch.float64, device=self.engine.device)
                if self.engine.device.type == "cuda"
                else self.state[:2]
            )

    def adamw(
        self,
        p,
        g,
        m,
        v,
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
        self._ready()
        e = self.engine
        values = np.array(
            [rates[0], rates[1], 1.0 - beta1**step, 1.0 - beta2**step, beta1, beta2, eps, decay, max_norm], np.float32
        )
        recorder = e.recorder
        if recorder.stage is not None:
            recorder.stage.send(values, self.hyper)
        else:
            self.hyper.copy_(torch.from_numpy(values))
        if e.process_group is not None:
            # one sum of the whole vector: it costs less than 1% of a step between the cards of a machine, and it cannot
            # begin sooner without hooks in the backward, which a replayed step does not run
            e.process_group.all_reduce_(g)
            # a NaN in one process's loss halts all of them in the same step
            e.process_group.all_reduce_(self.state[LOSS : LOSS + 1])
        self._launch(p, g, m, v, cut)
        if recorder.readback is not None:
            return recorder.readback.post(self.outcome, _norm)
        return _norm(self.outcome.tolist())

    def _launch(self, *vectors) -> None:
        """What follows the sums over processes: eager the first time, recorded the second, replayed from then on."""
        if self.engine.recorder.readback is None:
            return self._update(*vectors)
        key = (*(x.data_ptr() for x in vectors[:-1]), vectors[-1])
        if key != self.seen:
            self.forget()
            self.seen = key
            return self._update(*vectors)
        if self.graph is None:
            torch.cuda.synchronize()
            with capture(stream=self.engine.recorder.own) as graph:
                self._update(*vectors)
            self.graph = self.graphs.keep(graph)
        self.graph.replay()

    def _update(self, p, g, m, v, cut: int) -> None:
        self.partials = self.engine.f.square_sum(g, self.partials)
        self.engine.f.adamw(p, g, m, v, self.hyper, self.partials, self.state, cut)
        self.state[LOSS : LOSS + 1].zero_()
        self.place()
        self.outcome.copy_(self.state[:2])


def _norm(values) -> float:
    """The norm; NaN once the run has halted."""
    return values[NORM] if not values[HALT] else math.nan
