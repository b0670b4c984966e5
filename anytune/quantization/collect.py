"""Measuring importance: the mean squares of what goes into each product, over a text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from anytune.likelihood.windows import Forward, windows
from anytune.model.part import Layer

if TYPE_CHECKING:
    from anytune.adapter.adapter import Adapter
    from anytune.model import Model


def squares(x: np.ndarray) -> np.ndarray:
    """float32 [tokens, columns] -> float64 [columns]: sums of squares."""
    return np.einsum("ij,ij->j", x, x, dtype=np.float64)


class Watch:
    """An engine whose products add up `measure` of their inputs; everything else is the engine's own.

    sums: weight name -> the sum; the weights of one group share it.
    """

    def __init__(self, engine: Any, layers: Sequence[Layer], measure: Callable[[np.ndarray], np.ndarray] = squares):
        self._engine, self._measure = engine, measure
        self._names = {
            id(group): [f"blk.{i}.{name}.weight" for name in names]
            for i, layer in enumerate(layers)
            for group, names in layer.products
        }
        self.sums: dict[str, np.ndarray] = {}
        self.tokens = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def linear(self, x: Any, group: Any) -> tuple:
        names = self._names[id(group)]
        total = self._measure(np.asarray(self._engine.view(x), np.float32))
        if names[0] in self.sums:
            total += self.sums[names[0]]
        self.sums |= dict.fromkeys(names, total)
        return self._engine.linear(x, group)

    def norm_linear(self, x: Any, gain: Any, eps: float, group: Any) -> tuple:
        return self.linear(self._engine.rms_norm(x, gain, eps), group)

    def glu_linear(self, gate: Any, up: Any, activation: str, group: Any) -> tuple:
        return self.linear(self._engine.glu(gate, up, activation), group)


def collect(
    model: Model,
    text: str,
    *,
    context: int | None = None,
    chunks: int | None = None,
    batch: int = 2048,
    adapter: Adapter | None = None,
    measure: Callable[[np.ndarray], np.ndarray] = squares,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[dict[str, np.ndarray], int, int]:
    """(weight name -> sums of squares of its input's columns, tokens, windows) over the windows of `text`.

    context: tokens of a window, 512 or what the model can take; chunks: windows at most; batch: tokens run at once.
    adapter: of the model. measure: of float32 [tokens, columns] what is added up, in place of squares.
    progress: called with (tokens done, of how many). Raises UserError for a text shorter than one window.
    """
    pieces = windows(model, text, context, chunks, least=1)
    return collect_windows(model, pieces, batch=batch, adapter=adapter, measure=measure, progress=progress)


def collect_windows(
    model: Model,
    pieces: Sequence[Sequence[int]],
    *,
    batch: int = 2048,
    adapter: Adapter | None = None,
    measure: Callable[[np.ndarray], np.ndarray] = squares,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[dict[str, np.ndarray], int, int]:
    """collect() on windows of one length that are given."""
    model.refuse_experts("importance of inputs")
    context = len(pieces[0])
    forward = Forward(model, context, adapter)
    watch = Watch(forward.engine, forward.layers, measure)
    step = max(1, batch // context)
    for lo in range(0, len(pieces), step):
        some = pieces[lo : lo + step]
        forward.hidden(some, watch)
        watch.tokens += len(some) * context
        if progress is not None:
            progress(watch.tokens, len(pieces) * context)
    return watch.sums, watch.tokens, len(pieces)
