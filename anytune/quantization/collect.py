"""Measuring importance: the mean squares of what goes into each product, over a text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from anytune.errors import check_numbers
from anytune.likelihood.windows import Forward, windows
from anytune.model.part import Layer

if TYPE_CHECKING:
    from anytune.adapter.adapter import Adapter
    from anytune.model import Model


def squares(x: np.ndarray) -> np.ndarray:
    """float32 [tokens, columns] -> float64 [columns]: sums of squares."""
    return np.einsum("ij,ij->j", x, x, dtype=np.float64)


@dataclass(frozen=True)
class Collected:
    """sums: weight name -> sums over tokens of its input's columns, or of experts [experts, …]; the weights of one
    group share them. counts: over how many tokens, of experts float64 [experts]; tokens, windows: of the text."""

    sums: dict[str, np.ndarray]
    counts: dict[str, int | np.ndarray]
    tokens: int
    windows: int

    def means(self, name: str) -> np.ndarray:
        """0 for an expert that no token chose."""
        total, count = self.sums[name], self.counts[name]
        if isinstance(count, int):
            return total / count
        return total / np.maximum(count, 1).reshape(-1, *[1] * (total.ndim - 1))


class Watch:
    """An engine whose products add up `measure` of their inputs; everything else is the engine's own.

    experts: whether those of experts do too. What their last product reads is measured as llama.cpp does it, before the
    router's weights.
    """

    def __init__(
        self,
        engine: Any,
        layers: Sequence[Layer],
        measure: Callable[[np.ndarray], np.ndarray] = squares,
        experts: bool = True,
    ):
        self._engine, self._measure, self._experts = engine, measure, experts
        self._names = {
            id(group): [f"blk.{i}.{name}.weight" for name in names]
            for i, layer in enumerate(layers)
            for group, names in layer.named
        }
        self._inner: Any = None
        self.sums: dict[str, np.ndarray] = {}
        self.counts: dict[str, int | np.ndarray] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def _add(self, names: Sequence[str], total: np.ndarray, count: int | np.ndarray) -> None:
        if names[0] in self.sums:
            total, count = total + self.sums[names[0]], count + self.counts[names[0]]
        self.sums |= dict.fromkeys(names, total)
        self.counts |= dict.fromkeys(names, count)

    def _host(self, x: Any) -> np.ndarray:
        return np.asarray(self._engine.view(x), np.float32)

    def linear(self, x: Any, group: Any) -> tuple:
        names = self._names.get(id(group))  # none: of what layers mix in of their own, which stays as it is
        if names:
            rows = self._host(x)
            self._add(names, self._measure(rows), len(rows))
        return self._engine.linear(x, group)

    def norm_linear(self, x: Any, gain: Any, eps: float, group: Any) -> tuple:
        return self.linear(self._engine.rms_norm(x, gain, eps), group)

    def glu_linear(self, gate: Any, up: Any, activation: str, group: Any) -> tuple:
        return self.linear(self._engine.glu(gate, up, activation), group)

    def weigh(self, x: Any, routing: Any) -> Any:
        self._inner = self._host(x) if self._experts else None
        return self._engine.weigh(x, routing)

    def weighed_glu(self, gate: Any, up: Any, activation: str, routing: Any) -> Any:
        return self.weigh(self._engine.glu(gate, up, activation), routing)

    def expert_linear(self, x: Any, group: Any, routing: Any) -> tuple:
        if self._experts:
            rows = self._host(x) if self._inner is None else self._inner
            chosen = np.asarray(self._engine.host(routing.chosen), int).ravel()
            counts = np.bincount(chosen, minlength=routing.router.experts)
            ends = np.cumsum(counts)
            total = np.stack([self._measure(rows[end - n : end]) for n, end in zip(counts, ends)])
            self._add(self._names[id(group)], total, counts.astype(np.float64))
            self._inner = None
        return self._engine.expert_linear(x, group, routing)


def collect(
    model: Model,
    text: str,
    *,
    context: int | None = None,
    chunks: int | None = None,
    batch: int = 2048,
    adapter: Adapter | None = None,
    measure: Callable[[np.ndarray], np.ndarray] = squares,
    experts: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Collected:
    """What goes into each product, over the windows of `text`.

    context: tokens of a window, 512 or what the model can take; chunks: windows at most; batch: tokens run at once.
    adapter: of the model. measure: of float32 [tokens, columns] what is added up, in place of squares. experts: whether
    their products are measured too. progress: called with (tokens done, of how many). Raises UserError for a text
    shorter than one window.
    """
    pieces = windows(model, text, context, chunks, least=1)
    how = {"batch": batch, "adapter": adapter, "measure": measure, "experts": experts}
    return collect_windows(model, pieces, **how, progress=progress)


def collect_windows(
    model: Model,
    pieces: Sequence[Sequence[int]],
    *,
    batch: int = 2048,
    adapter: Adapter | None = None,
    measure: Callable[[np.ndarray], np.ndarray] = squares,
    experts: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Collected:
    """collect() on windows of one length that are given."""
    context, done = len(pieces[0]), 0
    forward = Forward(model, context, adapter)
    watch = Watch(forward.engine, forward.layers, measure, experts)
    step = max(1, batch // context)
    for lo in range(0, len(pieces), step):
        some = pieces[lo : lo + step]
        forward.hidden(some, watch)
        done += len(some) * context
        if progress is not None:
            progress(done, len(pieces) * context)
    for sums in watch.sums.values():
        check_numbers(sums, "activations")
    return Collected(watch.sums, watch.counts, done, len(pieces))
