"""The torch engine run dry: its own code on torch's `meta` device, where arrays are shapes and nothing is launched.

Whatever torch allocates passes the dispatcher, its own temporaries among it, so the count follows the code.
"""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from anytune.engine import optimizers as rules
from anytune.engine.base import Router
from anytune.engine.dry import Ledger, some

from . import fp8
from .arrays import STANDS_FOR
from .experts import ExpertWeights
from .routing import Routing
from .linear import hold_matrices, matrix
from .offload import Offloader
from .plain_low import gradient_table, place_table
from .weights import Group, Weight

BLOCK = 512  # bytes: the grain of torch's allocator
META, HOST = torch.device("meta"), torch.device("cpu")  # what is on the host is not counted
ASKED = torch.ops.aten._local_scalar_dense.default  # a number that the host asks for
Tensor = torch.Tensor


def _written(*args: Any, **kwargs: Any) -> Any:
    return args[0]


def _nothing(*args: Any, **kwargs: Any) -> None:
    pass


def _element_wise(*args: Any, **kwargs: Any) -> Tensor:
    parts = [x for x in args if isinstance(x, Tensor)]
    dtype = kwargs.get("dtype") or (parts[0].dtype if len(parts) == 1 else torch.result_type(*parts[-2:]))
    return parts[0].new_empty(np.broadcast_shapes(*(x.shape for x in parts)), dtype=dtype)


def _compared(*args: Any) -> Tensor:
    return _element_wise(*args, dtype=torch.bool)


def _chosen(x: Tensor, axis: int, index: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:axis], index.numel(), *x.shape[axis + 1 :]))


def _numbered(*ends: int, dtype: torch.dtype = torch.int64, device: Any = META, **_: Any) -> Tensor:
    return torch.empty(len(range(*ends)), dtype=dtype or torch.int64, device=device)


def _grouped(a: Tensor, b: Tensor, offs: Tensor, *_: Any, **__: Any) -> Tensor:
    return a.new_empty((len(offs), a.shape[0], b.shape[1]) if b.ndim == 2 else (a.shape[0], b.shape[2]))


@functools.cache
def shapes_of(operation: Any) -> Callable:
    """What gives an operation's result as a shape: torch's own form, unless that imports torch.compile, which takes
    seconds."""
    name = operation.overloadpacket.__name__
    if name.endswith("_") and not name.endswith("__"):
        return _written if operation._schema.returns else _nothing
    if name in ("lt", "le", "gt", "ge", "eq", "ne"):
        return _compared
    if torch.Tag.pointwise in operation.tags:
        return _element_wise
    return {"index_select": _chosen, "arange": _numbered, "_grouped_mm": _grouped}.get(name, operation)


class Watch(TorchDispatchMode):
    """Enters every storage that is made into a ledger, until it is freed."""

    def __init__(self, ledger: Ledger):
        super().__init__()
        self.ledger, self.known = ledger, set()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # a guard for torch.compile, whose import takes seconds

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is ASKED:
            return 1.0
        if kwargs and "out" in kwargs:  # written where memory is already
            return kwargs["out"]
        made = shapes_of(function)(*args, **(kwargs or {}))
        for x in made if isinstance(made, tuple | list) else (made,):
            if isinstance(x, Tensor) and x.is_meta:
                self._enter(x.untyped_storage())
        return made

    def _enter(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self.known:
            size = -(-storage.nbytes() // BLOCK) * BLOCK
            self.known.add(key)
            self.ledger.take("bytes", size)
            weakref.finalize(storage, self._leave, key, size).atexit = False

    def _leave(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.ledger.give("bytes", size)


class Unread:
    """A matrix whose bytes are not read."""

    def read(self, low: int, high: int, pinned: bool = False) -> Tensor:
        return torch.empty((high - low, self.row_bytes), dtype=torch.uint8, device=META)

    def blocks(self) -> Tensor:
        if self.hold == "stream":  # on its way to the device
            return self.read(0, self.out_features)
        if self._raw is None:
            self._raw = self.read(0, self.out_features)
        return self._raw

    def load_rows(self, out: Tensor) -> None:
        """Only `out` stays."""


class DryWeight(Unread, Weight):
    pass


class DryExperts(Unread, ExpertWeights):
    pass


class DryOffloader(Offloader):
    """What leaves is gone, and comes back as a shape."""

    def _send(self, rows: Tensor, number: int) -> tuple[Tensor, None]:
        return torch.empty(1, dtype=rows.dtype).expand(rows.shape), None  # on the host: not counted

    def _bring(self, ticket: Any) -> None:
        pass


class DryProcesses:
    """The processes that share weights or gradients, without them."""

    rank = 0

    def __init__(self, size: int):
        self.size, self.sharded = size, False

    def all_gather_(self, into: Tensor, part: Tensor) -> None:
        pass

    def all_reduce_(self, array: Tensor) -> None:
        pass


class DryGroup(Group):
    """Makes its tables when they are used, as most layers' are not; they are small."""

    def tables(self, engine: Any) -> DryGroup:
        self._engine = engine
        return self

    @property
    def gradient_table(self) -> Any:
        if self._gradient_table is None and self.trains_pairs:
            parts = self.parts(self._engine.gradients, True)
            self._gradient_table = gradient_table(parts, self.in_features, self.rank, HOST)
        return self._gradient_table

    @gradient_table.setter
    def gradient_table(self, table: Any) -> None:
        self._gradient_table = table

    @property
    def place_table(self) -> Any:
        if self._place_table is None and self.trains_pairs and self.dense is None:
            self._place_table = place_table([self.block(0, self._engine.updater.parameters)], HOST)
        return self._place_table

    @place_table.setter
    def place_table(self, table: Any) -> None:
        self._place_table = table


class Unmeasured:
    """A group's matrix in fp8, as fp8.Eight."""

    def __init__(self, group: Group, matrix: Tensor):
        self.scales, self.norm, self.held = matrix.new_empty(group.in_features, dtype=torch.float32), 1.0, None


def dry(engine: Any, sizes: Any) -> Dry:
    """The engine run dry, with temporary pieces of these sizes."""
    return type("DryEngine", (Dry, type(engine)), {})(engine, sizes)


class Dry:
    """What differs from an engine that computes; see anytune.engine.budget."""

    eight, each = staticmethod(Unmeasured), staticmethod(some)

    def __init__(self, engine: Any, sizes: Any):
        super().__init__(replace(engine.where, device=META))
        self.sizes, self.ledger, self.training, self.f = sizes, Ledger(), True, engine.f
        self.grouped = engine.grouped
        self.watch, self.offloader = Watch(self.ledger), DryOffloader(META)
        if engine.process_group is not None:
            self.process_group = DryProcesses(engine.process_group.size)

    @contextlib.contextmanager
    def counting(self) -> Iterator[Ledger]:
        """What is allocated within is entered into the ledger."""
        token = STANDS_FOR.set(self.where.kind)
        try:
            with self.watch:
                yield self.ledger
        finally:
            STANDS_FOR.reset(token)

    def total(self, most: dict) -> int:
        """Bytes of so many units of each kind."""
        return most.get("bytes", 0)

    @staticmethod
    def lasting(sizes: Any) -> tuple:
        """What of the sizes decides about arrays that outlast a layer."""
        return sizes.turned, sizes.attended, sizes.offload

    def begin(self, starts: Any, *of: Any) -> None:
        super().begin(starts, *of)
        self.starts = self.starts[:2]  # examples are alike: attention without kernels takes one after another

    def weight(self, gguf, name: str, hold: str = "blocks") -> DryWeight:
        made = (DryExperts if len(gguf.tensors[name].shape) == 3 else DryWeight)(self, gguf, name, "blocks")
        made.change_hold("blocks" if hold == "lookup" else hold)
        return made

    def group(self, *args: Any, **options: Any) -> DryGroup:
        return DryGroup(*args, **options).tables(self)

    def route(self, scores: Tensor, bias: Tensor | None, router: Router, scales: Tensor | None = None) -> Routing:
        """Every expert gets as many tokens."""
        made = super().route(scores, bias, router, scales)
        if not self.grouped:
            share = len(made.order) / router.experts
            made.ends = torch.tensor([int(share * (i + 1)) for i in range(router.experts)], device=HOST)
        return made

    def optimizer_state(self, kind: str, shape: tuple[int, ...]) -> dict[str, Tensor]:
        return {
            name: torch.empty(sizes, dtype=torch.uint8 if dtype is np.uint8 else torch.float32, device=META)
            for name, (sizes, dtype) in rules.state_shapes(kind, shape).items()
        }

    def constant(self, gguf, name: str) -> Tensor:
        return self.zeros(gguf.tensors[name].shape)

    def prepare(self, groups: list[Group], parameters: Tensor, gradients: Tensor) -> None:
        self.gradients, self.updater.parameters = gradients, parameters
        hold_matrices(self, groups, parameters)
        for group in groups:
            for weight in group.weights if group.hold != "dense" else ():
                if weight.gradient is None and weight.hold in ("blocks", "dense"):
                    weight.blocks()
        if self.fp8:
            fp8.prepare(self, groups, matrix)
