"""Sequences on their way through a model, a layer at a time, that can be stopped at each product.

A layer's forward is the model's own code. It runs on a Probe, an engine that leaves at the product that is asked for
and keeps what its operations gave: the next run gets these results back and goes on behind them, with what is then the
product's group. So an adapter can be made product by product, and no operation runs twice. Where memory is short the
results are not kept, and a layer runs from its start for each product.

Sequences with a common beginning (a system prompt, examples) share it: it runs once, as a batch of its own, and the
others' attention sees its keys and values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from anytune.model.own_embeddings import look_up
from anytune.model.part import Run
from anytune.model.rope import STILL
from anytune.model.stack import finish, layer_forward

if TYPE_CHECKING:
    from anytune.adapter.adapter import Adapter
    from anytune.model import Model


@dataclass(frozen=True)
class Batch:
    """Packed sequences: ids int32 [T], starts int32 [n + 1]; rows int32: those that statistics are of; scored int32
    and targets: rows whose next token counts, and that token; behind: tokens of the beginning that all share."""

    ids: np.ndarray
    starts: np.ndarray
    rows: np.ndarray
    scored: np.ndarray
    targets: np.ndarray
    behind: int = 0

    @property
    def positions(self) -> np.ndarray:
        return np.concatenate([np.arange(n, dtype=np.int32) for n in np.diff(self.starts)]) + np.int32(self.behind)

    @property
    def spans(self) -> list[tuple[int, int, int, int]]:
        """As an engine's places() takes them."""
        return [
            (slot, int(low), int(high), self.behind)
            for slot, (low, high) in enumerate(zip(self.starts, self.starts[1:]))
        ]


class _Reached(Exception):
    """The product that was asked for. value: its input, or its outputs."""

    def __init__(self, value: Any):
        super().__init__()
        self.value = value


class Probe:
    """An engine for one run of a layer: operations give what `kept` has, the first ones, or run and are kept.

    stop: the number of the product to leave at, with its input; with `after` behind it, with its outputs.
    """

    def __init__(self, walker: Walker, stop: int | None, after: bool):
        self._walker, self._engine, self._stop, self._after = walker, walker.side.engine, stop, after
        self._at = 0
        self._numbers = {id(group): number for number, (group, _) in enumerate(walker.side.layer.products)}

    def __getattr__(self, name: str) -> Any:
        operation = getattr(self._engine, name)
        if not callable(operation):
            return operation
        return lambda *args, **options: self._run(operation, args, options)

    def _run(self, operation: Any, args: tuple, options: dict | None = None) -> Any:
        kept = self._walker.kept
        if self._at == len(kept):
            kept.append(operation(*args, **(options or {})))
        self._at += 1
        return kept[self._at - 1]

    def linear(self, x: Any, group: Any) -> tuple:
        number = self._numbers.get(id(group), -1)  # -1: of a router, or of a gate, which nobody adapts
        if any(part.norm is None and part.reads is group for part in self._walker.side.layer.parts):
            self._walker.stream = x
        if number == self._stop and not self._after:
            raise _Reached(x)
        y = self._run(self._engine.linear, (x, group))
        if number == self._stop:
            raise _Reached(y)
        return y

    def norm_linear(self, x: Any, gain: Any, eps: float, group: Any) -> tuple:
        if any(part.reads is group for part in self._walker.side.layer.parts):
            self._walker.stream = x
        return self.linear(self.rms_norm(x, gain, eps), group)

    def glu_linear(self, gate: Any, up: Any, activation: str, group: Any) -> tuple:
        return self.linear(self.glu(gate, up, activation), group)

    def attention(self, *operands: Any) -> tuple:
        return self._run(self._walker.attention, operands)

    attention_with = attention


class Walker:
    """One batch of a Side within a layer. x: the layer's input; stream: the residual stream at the last norm."""

    def __init__(self, side: Side, batch: Batch, keep: bool):
        self.side, self.batch, self.keep = side, batch, keep
        self.kept: list[Any] = []
        self.x = self.stream = None
        self.bare: tuple[Any, tuple] | None = None  # a product's input, and its outputs without pairs
        self.shared: tuple[Any, Any] | None = None  # keys and values of a beginning, for those behind it
        self.caches: dict[int, tuple[Any, Any]] = {}  # by the width of keys
        self.beside: list[Any] = []  # what each layer mixes in of its own
        self.lent: dict[int, tuple] = {}  # keys and values that later layers read
        self.positions = side.engine.integers(batch.positions)

    def begin(self) -> None:
        e = self.side.engine
        e.training = False
        e.begin(self.batch.starts, self.side.capacity, (0, 0, 0))
        self.side.along.beside, self.side.along.kept = self.beside, self.lent

    def embed(self) -> None:
        self.begin()
        e, weights = self.side.engine, self.side.model.weights
        ids = e.integers(self.batch.ids)
        self.x = e.embed(ids, weights.embedding, weights.embedding_scale)
        self.beside[:] = look_up(weights, e, self.x, ids, self.positions, self.side.along)

    def run(self, stop: int | None = None, after: bool = False) -> Any:
        """The input of product `stop`, its outputs (`after`), or the layer's own result."""
        if not self.keep:
            self.kept = []
        self.begin()
        try:
            return layer_forward(Probe(self, stop, after), self.x, self.side.layer, self.positions)[0]
        except _Reached as reached:
            return reached.value

    def leave(self) -> None:
        self.x, self.stream = self.run(), None
        self.kept = []

    def attention(self, q: Any, k: Any, v: Any, heads: Any, *sinks: Any) -> tuple[Any, Any]:
        e, first = self.side.engine, self.side.first
        if self is first:
            self.shared = k, v
        if self is first or first is None:
            return (e.attention_with if sinks else e.attention)(q, k, v, heads, *sinks)
        width = heads.n_kv_heads * heads.head_dim
        if width not in self.caches:
            slots, most = len(self.batch.starts) - 1, int(np.diff(self.batch.starts).max()) + self.batch.behind
            self.caches[width] = tuple(e.cache(slots, most, width) for _ in range(2))
        where, caches = e.places(self.batch.spans), self.caches[width]
        for cache, common, own in zip(caches, first.shared, (k, v)):
            for slot, *_ in self.batch.spans:
                e.store(cache, e.places([(slot, 0, self.batch.behind, 0)]), common)
            e.store(cache, where, own)
        return e.attend_cache(q, *caches, where, heads, *sinks), None


class Side:
    """A model, with an adapter or one that is being made, over some batches. pairs: {tensor: the engine's low-rank
    pair}, shared by all sides of one adapter in the making; keep: whether results are kept within a layer."""

    def __init__(
        self,
        model: Model,
        batches: Sequence[Batch],
        beginning: Sequence[int] = (),
        adapter: Adapter | None = None,
        pairs: dict[str, Any] | None = None,
        keep: bool = True,
    ):
        self.model, self.engine = model, model.engine
        self.pairs = pairs if pairs is not None else model.adapter_pairs(adapter)
        starts = np.array([0, len(beginning)], np.int32)
        nothing = np.zeros(0, np.int32)
        first = Batch(np.asarray(beginning, np.int32), starts, nothing, nothing, nothing)
        every = [*([first] if len(beginning) else []), *batches]
        self.capacity = max(len(batch.ids) for batch in every)
        self.tables = model.rope_tables(max(int(batch.positions.max()) for batch in every) + 1)
        self.along = Run(self.tables.get(STILL))
        self.layer: Any = None
        self.number = -1
        walkers = [Walker(self, batch, keep or number == 0) for number, batch in enumerate(every)]
        self.first = walkers[0] if len(beginning) else None
        self.walkers = walkers[1:] if len(beginning) else walkers

    @property
    def tokens(self) -> int:
        """Rows that statistics are of."""
        return sum(len(walker.batch.rows) for walker in self.walkers)

    def start(self) -> None:
        for walker in self._all():
            walker.embed()

    def enter(self, number: int) -> None:
        self.number = number
        self.layer = self.model.weights.layer(number, self.tables, self.pairs, run=self.along)

    def tensors(self, product: int) -> list[str]:
        """Those of a product of the layer."""
        return [f"blk.{self.number}.{name}.weight" for name in self.layer.products[product][1]]

    def refresh(self) -> None:
        """Take up what was added to the pairs."""
        self.enter(self.number)

    def before(self, product: int) -> None:
        """Let the common beginning come as far as the batches are about to."""
        if self.first is not None:
            self.first.run(product)

    def leave(self) -> None:
        """All the rest of the layer."""
        for walker in self._all():
            walker.leave()

    def through(self, progress: Any = None) -> None:
        """All layers from the start."""
        self.start()
        for number in range(self.model.config.layers):
            self.enter(number)
            self.leave()
            if progress is not None:
                progress(number)

    def hidden(self, walker: Walker) -> Any:
        """What the output head reads in the scored rows: [scored, width] on the engine."""
        e, weights = self.engine, self.model.weights
        walker.begin()
        rows = e.gather(walker.x, e.integers(walker.batch.scored))
        return finish(e, weights, rows)

    def head(self) -> Any:
        return self.model.weights.head(self.pairs)

    def _all(self) -> list[Walker]:
        return ([self.first] if self.first is not None else []) + self.walkers
