"""One micro-batch through a model that is trained: forward, loss and backward, whatever the parameters are."""

from __future__ import annotations

import numpy as np

from anytune.engine.base import Stream

from .stack import Stack


class Passes(Stack):
    """A Stack that is trained; a subclass makes its parts (weights, layers, head, lowest, keep) on the engine."""

    def __init__(self, model, ubatch: int, seed: int):
        self.model, self.engine, self.config = model, model.engine, model.config
        self.ubatch, self.seed = ubatch, seed

    def accumulate(self, batch, scale: float, step: int, micro: int):
        """Run one micro-batch; add scale * gradient of its summed loss. -> that sum (nats, a Number)."""
        self.engine.training = True
        return self._replay("train", self._train, batch, scale, (self.seed, step, micro))

    def evaluate(self, batch):
        """Summed loss (nats, a Number) of a micro-batch, no gradients, no dropout."""
        self.engine.training = False
        return self._replay("evaluate", self._measure, batch, 1.0, (0, 0, 0))

    def loads(self) -> dict[str, float]:
        """As the engine's take_loads()."""
        return self.engine.take_loads()

    def _replay(self, kind: str, body, batch, scale: float, key: tuple[int, int, int]):
        rows = np.flatnonzero(batch.targets >= 0).astype(np.int32)
        if rows.size == 0:
            return 0.0
        return self.engine.replay(
            kind,
            body,
            Stream(batch.ids, batch.positions, batch.starts, rows, batch.targets[rows], scale, self.ubatch, key),
        )

    def _train(self, s: Stream):
        return self.train(self.engine, s)

    def _measure(self, s: Stream):
        return self.measure(self.engine, s)

    def _arrange(self, layers: list, head, parameters=None, gradients=None) -> None:
        """Take up layers and head with what is trained attached, and let the engine lay them out."""
        self.layers, self.head = layers, head
        trained = [i for i, layer in enumerate(layers) if layer.trains]
        self.lowest = trained[0] if trained else len(layers)
        groups = groups_of(layers, head) + ([self.weights.projection] if self.weights.owes else [])
        self.engine.prepare(groups, parameters, gradients)


def groups_of(layers: list, head) -> list:
    """All linears of layers and head as engine groups."""
    return [group for layer in layers for group in layer.groups] + [head]
