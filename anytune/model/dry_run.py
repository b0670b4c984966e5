"""One micro-batch of training on an engine that is run dry: what it takes, before anything is allocated.

Layers that repeat run once: a run is cut at the borders of layers into segments, and a layer whose neighbours and
itself are as another's stands for that one. Put together again that is the whole model's run, unit by unit.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import fields
from typing import Any

import numpy as np

from anytune.engine.base import Stream
from anytune.engine.dry import Segment, peaks
from anytune.engine.flops import Operations

from .build import Weights
from .part import Layer, Norm, Part
from .passes import groups_of
from .rope import tables
from .stack import Stack

SIMPLE = (int, float, str, bool, type(None), tuple)


class DryRun:
    """Micro-batches of ubatch tokens, in examples of `context`, on an engine that is run dry.

    lowest: of the layers with something trained.
    """

    def __init__(self, model, spec, engine, hold: str, lowest: int, ubatch: int, context: int):
        self.engine, self.spec, self.lowest, self.ubatch, e = engine, spec, lowest, ubatch, engine
        self.starts = np.arange(0, ubatch + context, context, dtype=np.int32)
        self.starts[-1] = ubatch
        self._known: dict[Hashable, Segment] = {}
        self._sizes: dict[Any, None] = {}  # that were run
        weights = Weights(model.gguf, model.config, e, hold)
        with e.counting() as ledger:
            self.prepared = ledger.mark()
            self.vectors, tables = spec.vectors(e), _tables(e, model.config, context)
        self.placed = placed = spec.place(weights, self.vectors, tables)
        self.layers = placed.layers
        e.row_padding = max((group.rank for layer in self.layers for group in layer.groups), default=0)
        with e.counting():
            e.prepare(groups_of(self.layers, placed.head), placed.parameters, placed.gradients)
        kinds: dict[Hashable, int] = {}
        self._kinds = [
            kinds.setdefault((i < lowest, *map(_signature, (la.mixer, la.ffn))), len(kinds))
            for i, la in enumerate(self.layers)
        ]

    def measure(self, sizes: Any, keep: int) -> tuple[int, float]:
        """(bytes that the engine takes, FLOPs) if the last `keep` layers keep all activations, with such pieces."""
        most, flops = peaks(self.segments(sizes, keep))
        return self.engine.total(most), flops

    def least(self, sizes: Any, keep: int) -> int:
        """Bytes that are taken at least, as far as it is known without a run: what outlasts a layer."""
        lasting = self.engine.lasting(sizes)
        for other in self._sizes:
            around = self._around(other, keep)
            if self.engine.lasting(other) == lasting and self._knows(other, around):
                return self.engine.total(peaks(self._joined(other, around), False)[0])
        return 0

    def segments(self, sizes: Any, keep: int) -> list[Segment]:
        """The whole model's run, in parts that were run."""
        around = self._around(sizes, keep)
        if not self._knows(sizes, around):
            self._run(sizes, around, representatives(around), keep)
            self._sizes[sizes] = None
        return self._joined(sizes, around)

    def _around(self, sizes: Any, keep: int) -> list[Hashable]:
        """What a layer and its neighbours are, for each."""
        count = len(self.layers)
        kinds = [(sizes, i >= count - keep, kind) for i, kind in enumerate(self._kinds)]
        return [(*kinds[max(0, i - 1) : i + 2], i == 0, i == count - 1) for i in range(count)]

    def _knows(self, sizes: Any, around: list[Hashable]) -> bool:
        return {*around, sizes} <= {key[0] for key in self._known}

    def _joined(self, sizes: Any, around: list[Hashable]) -> list[Segment]:
        calls = [(sizes, "begin"), *((place, "forward") for place in around)]
        calls += [(place, way) for place in reversed(around) for way in ("again", "backward")]
        calls.append((sizes, "update"))
        return [self.prepared, *(self._known[call] for call in calls if call in self._known)]

    def _run(self, sizes: Any, around: list[Hashable], kept: list[int], keep: int) -> None:
        """The layers `kept` of all, as they are with their neighbours."""
        e, count, placed = self.engine, len(self.layers), self.placed
        below = sum(i < self.lowest for i in kept)
        full = sum(i >= max(self.lowest, count - keep) for i in kept)
        e.sizes = sizes
        with e.counting() as ledger:

            def begin(number: int, way: str) -> None:
                if way == "forward" and (number, way) in begun:
                    way = "again"
                begun.add((number, way))
                self._known[around[number], way] = ledger.mark()

            begun: set = set()
            some = [_Marked(self.layers[i], begin, i) for i in kept]
            stack = Stack(placed.weights, some, placed.head, below, full)
            stack.embedding_gradient, stack.norm_gradient = placed.embedding_gradient, placed.norm_gradient
            self._known[sizes, "begin"] = ledger.mark()
            e.begin(self.starts, self.ubatch)
            ids = e.integers(np.arange(self.ubatch))
            seen = float((np.diff(self.starts) ** 2.0).sum()) / self.ubatch / 2
            stack.train(Operations(e, ledger, seen), Stream(ids, ids, self.starts, ids, ids, 1.0, self.ubatch))
            e.settle()
            self._known[sizes, "update"] = ledger.mark()
            self.spec.update(e, self.vectors)
            ledger.mark()


def _tables(e, config, context: int) -> dict:
    """As Model.rope_tables(), on the engine."""
    return {rope: tuple(map(e.vector, table)) for rope, table in tables(config, context).items()}


class _Marked(Layer):
    """A layer that says when its forward and its backward begin."""

    def __init__(self, layer: Layer, begin: Callable[[int, str], None], number: int):
        def behind() -> None:
            begin(number, "backward")

        beside = layer.beside and _Part(layer.beside, None, behind)
        super().__init__(
            _Part(layer.mixer, lambda: begin(number, "forward"), None),
            _Part(layer.ffn, None, None if beside else behind),
            beside,
            layer.factor,
            layer.run,
        )


class _Part:
    def __init__(self, part: Part, before: Callable[[], None] | None, behind: Callable[[], None] | None):
        self._part, self._before, self._behind = part, before, behind

    def __getattr__(self, name: str) -> Any:
        return getattr(self._part, name)

    def forward(self, *args: Any) -> Any:
        if self._before:
            self._before()
        return self._part.forward(*args)

    def backward(self, *args: Any) -> Any:
        if self._behind:
            self._behind()
        return self._part.backward(*args)


def representatives(around: list[Hashable]) -> list[int]:
    """The layers that are run, of layers whose kind and neighbours `around` says: what comes between two that are alike
    may be left out if all of it came before."""
    kept: list[int] = []
    for number in range(len(around)):
        kept.append(number)
        for period in range(1, len(kept) // 2 + 1):
            last, before = kept[-period:], kept[-2 * period : -period]
            if [around[i] for i in last] == [around[i] for i in before]:
                del kept[-period:]
                break
    return kept


def _signature(part: Part) -> Hashable:
    found: list[Hashable] = [type(part)]
    for item in fields(part):
        value = getattr(part, item.name)
        if isinstance(value, Norm):
            value = value.trains
        elif isinstance(value, Part):
            value = _signature(value)
        elif hasattr(value, "weights"):
            value = _linears(value)
        elif not isinstance(value, SIMPLE) and not hasattr(value, "head_dim") and not hasattr(value, "key_size"):
            value = type(value)
        found.append(value if _hashable(value) else type(value))
    return tuple(found)


def _hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def _linears(group: Any) -> Hashable:
    return tuple(
        (w.out_features, w.in_features, w.nbytes, w.gradient is not None, None if pair is None else pair.a.shape[-2])
        for w, pair in zip(group.weights, group.pairs or (None,) * len(group.weights))
    )
