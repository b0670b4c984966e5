"""A recorded pass in several CUDA graphs, with calls between them that cannot be recorded."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from .resources import Owned


class Segments:
    """Within `with`, what is launched becomes graphs of one memory pool, and no kernel runs; replay() launches them in
    order. They are `owner`'s. join: what brings other streams' work back before a graph ends."""

    def __init__(self, owner: Owned, pool, stream, join: Callable[[], None]):
        self.owner, self.pool, self.join = owner, pool, join
        self.parts: list[Callable[[], object]] = []
        self._graph: torch.cuda.CUDAGraph | None = None
        self._on = torch.cuda.stream(stream)

    def __enter__(self) -> Segments:
        self._on.__enter__()
        self._begin()
        return self

    def __exit__(self, kind, error, trace) -> None:
        try:
            self._end()
        finally:
            self._on.__exit__(kind, error, trace)

    def between(self, calls: Iterable[Callable[[], object]]) -> None:
        """End a graph, note the calls for each replay, and begin the next graph."""
        self.join()
        self._end()
        self.parts.extend(calls)
        self._begin()

    def replay(self) -> None:
        for part in self.parts:
            part()

    def _begin(self) -> None:
        self._graph = torch.cuda.CUDAGraph()
        self._graph.capture_begin(pool=self.pool, capture_error_mode="thread_local")

    def _end(self) -> None:
        if self._graph is not None:
            graph, self._graph = self._graph, None
            graph.capture_end()
            self.parts.append(self.owner.keep(graph).replay)
