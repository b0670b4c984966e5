"""The NumPy engine's ways to train within memory: the whole process's resident size counts.

Cheapest first: weights' blocks are read from the file for each use, temporary pieces become smaller. Weights are
dequantized once, to float32, only where dequantizing them at each use would be slow (a type without a compiled kernel).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from anytune.engine.budget import Way
from anytune.memory import MIB, available_bytes, page_out_code, process_bytes, trim

from .sizes import LEAN, SMALL, Sizes

if TYPE_CHECKING:
    from .dry import Dry

SLOW_COST = 0.8  # of a step: dequantizing twice without a compiled kernel
STREAM_COST = 0.04  # of a step: reading all blocks twice from the page cache
PIECES = (
    (Sizes(), 0.0, ""),
    (SMALL, 0.04, "; temporary pieces are small"),
    (LEAN, 0.1, "; temporary pieces are small"),
)  # sizes, what smaller ones cost, in words
BLAS = 8 * MIB  # a thread: BLAS's own packing buffer, touched with the first large product
PLAIN = 16 * MIB  # the temporaries of NumPy expressions, where kernels are not compiled
SLACK = 4 * MIB  # what no count sees: the interpreter's own growth, pages that libraries touch
HOLDS = {
    "blocks": "weights stay in their GGUF blocks in memory",
    "stream": "weights are read from the file at each use",
    "float32": "weights are dequantized once",
}


class NumpyBudget:
    """See anytune.engine.budget. memory: bytes for the whole process; None: nine tenths of what is free."""

    place = "memory"

    def __init__(self, engine, weights, memory: int | None):
        self.engine = engine
        trim()
        page_out_code()
        self.base = process_bytes() + SLACK + BLAS * engine.workers.count + (0 if engine.compiled else PLAIN)
        self.limit = memory if memory is not None else self.base + int(0.9 * available_bytes())
        slow = SLOW_COST if weights.slow else 0.0
        holds = [("blocks", slow), ("stream", slow + STREAM_COST)] + ([("float32", 0.0)] if slow else [])
        self.ways = [
            Way(cost + more, hold, sizes, HOLDS[hold] + words) for hold, cost in holds for sizes, more, words in PIECES
        ]

    def dry(self, way: Way, capacity: int) -> Dry:
        from .dry import dry

        return dry(self.engine, way.sizes, capacity)
