"""What goes into each product and what its outputs are worth, from one backward.

The gradient g by a product's outputs is of the loss of a label that is drawn from the model itself, so that E[g gᵀ] is
the outputs' Fisher matrix (Amari 1998; K-FAC's output factor, Martens and Grosse 2015). Labels from the data would
measure how wrong the model is instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from anytune.adapt.walk import Batch
from anytune.model.stack import backward, embed, finish, finish_backward, forward

if TYPE_CHECKING:
    from anytune.adapter.adapter import Adapter
    from anytune.model import Model

See = Callable[[str, Any, Any], None]  # tensor, inputs [tokens, in], gradients of its outputs [tokens, out]


class _Watch:
    """An engine whose backwards show `see` what went into each product, and the gradients that reach its outputs."""

    def __init__(self, engine: Any, layers: Sequence[Any], see: See):
        self._engine, self._see = engine, see
        self._names = {
            id(group): [f"blk.{i}.{name}.weight" for name in names]
            for i, layer in enumerate(layers)
            for group, names in layer.products
        }

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def linear_backward(self, dys: tuple, x: Any, group: Any, need_dx: bool = True) -> Any:
        names = self._names.get(id(group))  # None: of a router, or of a gate, which nobody adapts
        if names is not None:
            inputs = self._engine.lift(x)
            for name, dy in zip(names, dys, strict=True):
                self._see(name, inputs, self._engine.lift(dy))
        return self._engine.linear_backward(dys, x, group, need_dx)

    def norm_linear_backward(self, dys, x, gain, eps, group, residual, need_dx=True, then=None, into=None):
        dh = self.linear_backward(dys, self._engine.rms_norm(x, gain, eps), group, need_dx)
        return self._engine.rms_norm_backward(dh, x, gain, eps, residual) if need_dx else None

    def glu_linear_backward(self, dy, gate, up, activation, group, then, need_dx=True):
        da = self.linear_backward((dy,), self._engine.glu(gate, up, activation), group, need_dx)
        return self._engine.glu_backward(da, gate, up, activation) if need_dx else None


def look_back(
    model: Model,
    batches: Sequence[Batch],
    see: See,
    adapter: Adapter | None = None,
    seed: int = 0,
    tell: Callable[[int], None] = lambda _: None,
) -> int:
    """Show `see` every product's inputs and gradients over whole sequences -> the tokens that they were.

    batches: without a common beginning; labels are drawn for their scored rows. tell: called after each.
    """
    e, weights, config = model.engine, model.weights, model.config
    most, longest = max(len(batch.ids) for batch in batches), max(int(b.positions.max()) for b in batches) + 1
    if adapter is None:
        layers, head, keep = weights.layers(model.rope_tables(longest)), weights.head(), config.layers
    else:  # gradients of its pairs are made, and not used
        from anytune.model import Lora

        trainee = model.trainee(Lora(), adapter=adapter, ubatch=most, context=longest)
        layers, head, keep = trainee.layers, trainee.head, trainee.keep
    watch = _Watch(e, layers, see)
    random, tokens = np.random.default_rng(seed), 0
    e.training = True
    for number, batch in enumerate(batches):
        e.begin(batch.starts, most, (0, 0, 0))
        positions, rows = e.integers(batch.positions), e.integers(batch.scored)
        x = embed(e, weights, layers, e.integers(batch.ids), positions)
        top, tape = forward(e, layers, x, positions, rows, 0, keep)
        h = finish(e, weights, top)
        _, dh = e.cross_entropy(h, head, e.integers(_drawn(e, h, head, len(batch.scored), random)), 1.0, True)
        dx = finish_backward(e, weights, dh, top)
        backward(watch, layers, dx, positions, rows, 0, keep, tape, bottom=True)
        e.settle()
        tokens += len(batch.ids)
        tell(number)
    e.training, e.row_padding = False, 0
    return tokens


def _drawn(e: Any, h: Any, head: Any, count: int, random: np.random.Generator, step: int = 256) -> np.ndarray:
    """int32 [count]: for each row a token drawn from the model's own distribution."""
    found = []
    for low in range(0, count, step):
        rows = e.gather(h, e.integers(np.arange(low, min(low + step, count), dtype=np.int32)))
        logits = np.asarray(e.host(e.logits(rows, head)), np.float32)
        # Gumbel's trick: the largest of logits and independent noise is a draw
        noise = np.maximum(random.standard_exponential(logits.shape, np.float32), np.float32(1e-30))
        found.append((logits - np.log(noise)).argmax(1))
    return np.concatenate(found).astype(np.int32)
