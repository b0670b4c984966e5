"""What is trained, as shapes: enough for a planner to count a micro-batch before anything is allocated."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from anytune.engine.optimizers import Rule

from .full import Full
from .lora import Lora
from .lora_layout import Layout
from .own_embeddings import OWN

EMBEDDING = "token_embd.weight"


@dataclass(frozen=True)
class Placed:
    """A model on an engine with what is trained attached. parameters, gradients: flat, of pairs; kept: what else of it
    takes memory."""

    weights: Any
    layers: list
    head: Any
    parameters: Any = None
    gradients: Any = None
    kept: tuple = ()
    embedding_gradient: Any = None
    norm_gradient: Any = None


class LoraSpec:
    """Pairs beside frozen matrices; shapes: {tensor: (out, in), or (experts, out, in)}."""

    advice = "give a larger --memory, a smaller -ub and -c, or a lower --lora-rank"
    names: tuple[str, ...] = ()  # trained tensors of the model itself

    def __init__(self, lora: Lora, shapes: dict[str, tuple[int, ...]]):
        self.lora, self.shapes, self.layout = lora, shapes, Layout.of(shapes, lora.rank)

    def vectors(self, e) -> tuple:
        """What training keeps on an engine: parameters, gradients, two moments."""
        return tuple(e.zeros(self.layout.size) for _ in range(4))

    def place(self, weights, vectors: tuple, tables: dict) -> Placed:
        """A model's layers on the weights' engine, with vectors() attached."""
        e, layout = weights.engine, self.layout
        flat, gradients, *moments = vectors
        pairs = {
            pair.name: e.lora_pair(
                pair.view_a(flat), pair.view_b(flat), self.lora.scale, pair.view_a(gradients), pair.view_b(gradients)
            )
            for pair in layout.pairs
        }
        layers, head = weights.layers(tables, pairs, self.lora.dropout), weights.head(pairs)
        return Placed(weights, layers, head, flat, gradients, tuple(moments))

    def update(self, e, vectors: tuple) -> None:
        """An optimizer's step takes nothing that would be worth counting."""

    def lowest(self, layers: int) -> int:
        return _lowest(self.shapes, layers)


class FullSpec:
    """The model's own tensors; shapes: {tensor: its shape}."""

    advice = (
        "give a larger --memory, a smaller -ub and -c, --optimizer adafactor, or train less: --train-modules, "
        "--train-layers"
    )

    def __init__(self, full: Full, shapes: dict[str, tuple[int, ...]]):
        self.full, self.shapes = full, shapes
        self.names = tuple(shapes)

    def vectors(self, e) -> tuple:
        """What training keeps on an engine: parameters and gradients, and the optimizer's states."""
        parts = {name: tuple(e.zeros(math.prod(s)) for _ in range(2)) for name, s in self.shapes.items()}
        return parts, [e.optimizer_state(self.full.optimizer, shape) for shape in self.shapes.values()]

    def place(self, weights, vectors: tuple, tables: dict) -> Placed:
        """As LoraSpec.place()."""
        parts, states = vectors
        weights = weights.with_trained(
            {name: tuple(x.reshape(self.shapes[name]) for x in part) for name, part in parts.items()}
        )
        ends = EMBEDDING, weights.config.output_norm
        embedding, norm = (parts[name][1] if name in parts else None for name in ends)
        embedding = None if embedding is None else embedding.reshape(self.shapes[EMBEDDING])
        return Placed(weights, weights.layers(tables), weights.head(), None, None, (parts, states), embedding, norm)

    def update(self, e, vectors: tuple) -> None:
        """An optimizer's step."""
        parts, states = vectors
        rule = Rule(float(e.norm([gradient for _, gradient in parts.values()])), 1e-3, 1, 0.9, 0.999, 1e-8, 0.01)
        alike = {self.shapes[name]: (*part, state) for (name, part), state in zip(parts.items(), states)}
        for shape, (values, gradient, state) in alike.items():  # one after another: those of one shape take the same
            e.optimize(self.full.optimizer, values, gradient, state, shape, rule)

    def lowest(self, layers: int) -> int:
        return 0 if EMBEDDING in self.shapes or OWN & self.shapes.keys() else _lowest(self.shapes, layers)


def _lowest(names, layers: int) -> int:
    """The lowest layer with something trained; `layers` if there is none."""
    return min((int(n.split(".")[1]) for n in names if n.startswith("blk.")), default=layers)
