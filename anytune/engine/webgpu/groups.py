"""Linears that share an input: where their outputs lie, and which of them are one product."""

from __future__ import annotations

import numpy as np

from anytune.engine.trains import Trains

from .arrays import Array, lines
from .kernels import rows as _rows
from .weights import LoraPair, Part, Weight, adjacent


class Group(Trains):
    """Weights, biases (or None each), low-rank pairs (or None each). Outputs begin at whole lines, at `starts`.

    bias_gradients: what those of trained biases are added to, None for each that is frozen.
    """

    def __init__(
        self, engine, weights, biases=None, pairs=None, dropout: float = 0.0, number: int = 0, bias_gradients=None
    ):
        self.engine = engine
        self.weights: tuple[Weight, ...] = tuple(weights)
        self.biases = tuple(biases or ()) or (None,) * len(self.weights)
        self.bias_gradients = tuple(bias_gradients or ()) or (None,) * len(self.weights)
        self.pairs: tuple[LoraPair | None, ...] = tuple(pairs or ()) or (None,) * len(self.weights)
        self.dropout, self.number, self.cap = dropout, number, 0.0
        self.in_features = self.weights[0].in_features
        self.starts = np.cumsum([0] + [lines(w.out_features) for w in self.weights]).tolist()
        self.rank = sum(s.rank for s in self.pairs if s is not None)
        self._parts: list[Part] | None = None
        self._held: tuple | None = None
        self._bias: Array | None = None

    @property
    def width(self) -> int:
        """Columns of a buffer for all outputs."""
        return self.starts[-1]

    def split(self, y: Array) -> tuple[Array, ...]:
        return tuple(y.part(at, at + w.out_features) for at, w in zip(self.starts, self.weights))

    def parts(self) -> list[Part]:
        """One part if weights and pairs lie so that it can be, else one for each linear."""
        held = tuple(w.hold for w in self.weights)
        if self._parts is None or self._held != held:
            self._held = held
            if self._one_product():
                self._load_together()
                bounds = [*self.starts[:-1], self.starts[-2] + self.weights[-1].out_features]
                self._parts = [Part(list(self.weights), 0, bounds[-1], bounds, list(self.pairs))]
            else:
                self._parts = [
                    Part([w], at, at + w.out_features, [0, w.out_features], [s])
                    for w, at, s in zip(self.weights, self.starts, self.pairs)
                ]
        return self._parts

    def _one_product(self) -> bool:
        weights, pairs = self.weights, self.pairs
        if len(weights) == 1 or len(weights) > 3 or any(w.hold == "stream" or w.gradient is not None for w in weights):
            return False
        if len({w.block for w in weights}) > 1 or any(w.out_features % 64 for w in weights[:-1]):
            return False
        if sum(w.nbytes for w in weights) > self.engine.device.max_buffer:
            return False
        there = [s for s in pairs if s is not None]
        if there and (len(there) < len(pairs) or len({(s.rank, s.scale) for s in there}) > 1):
            return False
        return all(
            adjacent(getattr(a, name), getattr(b, name))
            for a, b in zip(there, there[1:])
            for name in ("a", "b", "grad_a", "grad_b")
        )

    def _load_together(self) -> None:
        """Give the weights one buffer, unless they have their places already."""
        if any(w.loaded for w in self.weights):
            return
        self.engine.commands.flush()
        buffer, at = self.engine.device.buffer(sum(w.nbytes for w in self.weights)), 0
        for weight in self.weights:
            weight.write(buffer, at)
            weight.adopt(buffer, at)
            at += weight.nbytes

    def load(self) -> None:
        """Bring the weights to the device, but those that are streamed."""
        for part in self.parts():
            if part.weights[0].hold != "stream":
                for weight in part.weights:
                    weight.rows()

    def bias(self) -> Array | None:
        """All biases at their outputs' places, zero where there is none."""
        if self._bias is None and any(b is not None for b in self.biases):
            e, values = self.engine, np.zeros(self.width, np.float32)
            for at, bias in zip(self.starts, self.biases):
                if bias is not None:
                    values[at : at + bias.size] = e.host(bias)
            self._bias = e.vector(values)
        for at, bias, gradient in zip(self.starts, self.biases, self.bias_gradients):
            if gradient is not None:  # it changes between steps
                self.engine.commands.run(
                    _rows.copy(),
                    [bias, self._bias],
                    (bias.size, bias.size, bias.size, 0, at),
                    self.engine.grid(bias.size, 1),
                )
        return self._bias
