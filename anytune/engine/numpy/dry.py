"""The NumPy engine run dry: its own code on arrays without memory, with kernels that nobody runs.

Whatever it allocates is entered into a ledger: a buffer of the pool until it is free, the largest of each scratch for
every worker, and what an expression takes for a while. Of pieces that are alike only some are run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np

from anytune.engine import optimizers as rules
from anytune.engine.base import Heads, Router
from anytune.engine.dry import Ledger, some

from .attention import Task
from .meta import Memory, MetaArray
from .routing import Routing
from .weights import Expert, ExpertWeights, Weight
from .workers import Job, piece, pieces


class Silent:
    """A module of kernels: what is compiled does nothing, and what says how large something is still says so."""

    def __init__(self, module: Any, all_of_it: bool = False):
        self._module, self._all = module, all_of_it

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._module, name)
        if callable(found) and (self._all or hasattr(found, "py_func")):
            found = _nothing
        setattr(self, name, found)
        return found


def _nothing(*_: Any, **__: Any) -> float:
    return 0.0


class DryPool:
    """Buffers that serve requests of their own size only: a kind of the ledger for each."""

    bytes = 0

    def __init__(self, memory: Memory):
        self.memory = memory

    def take(self, floats: int) -> MetaArray:
        return self.memory.shared(floats, kind=floats)

    def clear(self) -> None:
        pass


class DryWorkers:
    """Workers that are one. What a job takes for a while, each of those that work side by side takes."""

    def __init__(self, count: int, memory: Memory):
        self.count, self.memory = count, memory

    def run(self, jobs: list[Job], small: bool = False) -> None:
        """Jobs that differ only in where they begin are one."""
        memory = self.memory
        memory.kind, memory.times = "jobs", 1 if small else self.count
        try:
            for job in _unlike(jobs):
                job(0)
        finally:
            memory.kind, memory.times = "bytes", 1

    def chains(self, chains: list[list[Job]]) -> None:
        self.run([job for chain in chains for job in some(chain)])

    def rows(self, count: int, task: Callable[[int, int], None], at_least: int = 1) -> None:
        cut = next(pieces(0, count, piece(count, at_least)), None)  # the largest
        if cut is not None:
            self.run([lambda _: task(*cut)], cut[1] == count)

    def close(self) -> None:
        pass


def _unlike(jobs: list[Job]) -> Iterable[Job]:
    """Of jobs that take the same, one: the last two numbers that they are given say where rows or columns begin and
    end, and all else is the same."""
    found: dict[Any, Job] = {}
    places: dict[Any, int] = {}  # of these two numbers
    for job in jobs:
        if not isinstance(job, partial):
            found[id(job)] = job
            continue
        args, function = job.args, job.func
        if function not in places:
            places[function] = max((i for i, x in enumerate(args) if type(x) is int and i), default=0) - 1
        at = places[function]
        if at < 0 or type(args[at]) is not int:
            found[id(job)] = job
        else:
            same = (*map(id, args[:at]), *map(id, args[at + 2 :]))
            found.setdefault((function, args[at + 1] - args[at], same), job)
    return found.values()


class DryWeight(Weight):
    """A matrix whose bytes are not read."""

    def __init__(self, memory: Memory, *of: Any):
        super().__init__(*of)
        self.empty = memory.shared

    def read_rows(self, low: int, high: int, raw: Any) -> None:
        pass

    def _read(self, low: int, high: int, raw: Any) -> Any:
        return raw[: (high - low) * self.row_bytes]

    def _picked(self, rows: Any) -> Any:
        return self.empty((rows.shape[0], self.row_bytes), np.uint8)

    def _convert(self, *_: Any) -> None:
        pass


class DryExpert(DryWeight, Expert):
    pass


class DryExperts(ExpertWeights):
    """All experts are held from the first on that is used."""

    def __init__(self, memory: Memory, *of: Any):
        super().__init__(*of)
        self.memory, self._blocks = memory, None

    def expert(self, number: int) -> DryExpert:
        if self._blocks is None and self.hold != "stream":
            each = self.nbytes if self.hold == "blocks" else 4 * self.out_features * self.in_features
            self._blocks = self.memory.shared(each, np.uint8)
        if number not in self._made:
            made = self._made[number] = DryExpert(self.memory, number, *self._of, self.hold, self._kernels)
            made.empty = self.memory.known
        return self._made[number]

    def forget(self) -> None:
        super().forget()
        self._blocks = None


class DryRouting(Routing):
    @property
    def spans(self) -> list[tuple[int, int, int]]:
        """One expert for each number of tokens."""
        return list({high - low: (i, low, high) for i, low, high in super().spans}.values())


def dry(engine: Any, sizes: Any, capacity: int, how: type | None = None) -> Dry:
    """The engine run dry, for streams of up to `capacity` tokens. how: what differs, if it is more than Dry says."""
    return type("DryEngine", (how or Dry, type(engine)), {})(engine, sizes, capacity)


class Dry:
    """What differs from an engine that computes; see anytune.engine.budget."""

    matrix, experts = DryWeight, DryExperts

    def __init__(self, engine: Any, sizes: Any, capacity: int):
        super().__init__(1, engine.compiled)
        self.ledger = Ledger()
        self.memory = memory = Memory(self.ledger)
        self.kernels, self.pool = Silent(self.kernels, True), DryPool(memory)
        self.workers = DryWorkers(engine.workers.count, memory)
        self.sizes, self.capacity, self.training = sizes, capacity, True
        self.empty = memory.empty
        self._weights: list[DryWeight | DryExperts] = []
        self._groups: list = []

    @contextlib.contextmanager
    def counting(self) -> Iterator[Ledger]:
        """Begins with nothing in memory of the weights: each comes there when it is used."""
        for weight in self._weights:
            weight.forget()
        for group in self._groups:
            group.packed = None
        with np.errstate(all="ignore"):  # numbers that stand for others
            yield self.ledger

    def total(self, most: dict) -> int:
        """Bytes of so many units of each kind."""
        return sum(most.values())

    @staticmethod
    def lasting(sizes: Any) -> Hashable:
        """What of the sizes decides about arrays that outlast a layer."""
        return getattr(sizes, "packed", None)

    each = staticmethod(some)

    # ---- memory
    def scratch(self, number: int, name: str, floats: int) -> MetaArray:
        return self.memory.kept(("scratch", name), 4 * floats, np.float32)

    def raw(self, number: int, size: int) -> MetaArray:
        return self.memory.kept(("raw", number < 0), size, np.uint8)

    def attention_tasks(self, heads: Heads) -> list[tuple[int, list[Task]]]:
        """Of all lanes only what takes the most: no other task has as many rows and as many keys."""
        if heads not in self._tasks:
            chains = super().attention_tasks(heads)
            largest = _largest([task for _, tasks in chains for task in tasks], heads.window)
            self._tasks[heads] = [(lane, largest if lane == 0 else []) for lane in sorted({lane for lane, _ in chains})]
        return self._tasks[heads]

    # ---- constants and transfers
    def weight(self, gguf: Any, name: str, hold: str = "blocks") -> DryWeight | DryExperts:
        kind = self.experts if len(gguf.tensors[name].shape) == 3 else self.matrix
        made = kind(self.memory, gguf, name, "stream" if hold == "lookup" else hold, self.dequantizers)
        self._weights.append(made)
        return made

    def group(self, *args: Any, **options: Any) -> Any:
        made = super().group(*args, **options)
        self._groups.append(made)
        return made

    def constant(self, gguf: Any, name: str) -> Any:
        """It is there already."""
        shape = gguf.tensors[name].shape
        return np.ones(shape, np.float32) if len(shape) == 1 else self.memory.known(shape)

    def vector(self, values: np.ndarray) -> MetaArray:
        return self.memory.empty(values.shape)

    def zeros(self, size: int) -> MetaArray:
        return self.memory.empty(size)

    def host(self, x: Any) -> Any:
        return x if isinstance(x, MetaArray | np.ndarray) else super().host(x)

    def optimizer_state(self, kind: str, shape: tuple[int, ...]) -> dict[str, MetaArray]:
        return {name: self.memory.empty(*of) for name, of in rules.state_shapes(kind, shape).items()}

    # ---- operations whose results depend on numbers
    def dropout_mask(self, group: Any, tokens: int) -> MetaArray:
        return self.empty((tokens, group.in_features)) >= np.float32(group.dropout)

    def route(self, scores: MetaArray, bias: Any, router: Router, scales: Any = None) -> Routing:
        """Every expert gets as many tokens."""
        tokens, used = scores.shape[0], router.used
        slots = tokens * used
        parts = np.broadcast_to(np.float32(1 / router.experts), (tokens, router.experts))
        chosen = np.arange(slots, dtype=np.int32).reshape(tokens, used) % router.experts
        ends = [slots * (i + 1) // router.experts for i in range(router.experts)]
        return DryRouting(
            router,
            chosen,
            np.full((tokens, used), 1 / used, np.float32),
            np.float32(router.scale),
            np.arange(slots, dtype=np.int32) // used,
            np.arange(slots, dtype=np.int32).reshape(tokens, used),
            [0, *ends],
            parts,
        )


def _largest(tasks: list[Task], window: int) -> list[Task]:
    sizes = {(t.high - t.low, t.high - t.first_key(window)): t for t in tasks}
    return [
        t
        for (rows, keys), t in sizes.items()
        if not any(r >= rows and k >= keys for r, k in sizes if (r, k) != (rows, keys))
    ]
