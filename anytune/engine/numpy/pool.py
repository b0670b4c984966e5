"""Buffers that are used again: an array goes back to the pool when its last view is gone.

Shapes are the same at every step, so after the first one nothing is allocated any more. Every array handed
out is a view whose `.base` is the buffer itself; a buffer is free when only the pool still refers to it.
"""

from __future__ import annotations

import sys

import numpy as np

_ALIGN = 64  # bytes: a cache line, and one AVX-512 register


class Pool:
    """Free lists of float32 buffers by size. `bytes` counts all that it holds, in use or free."""

    def __init__(self) -> None:
        self._buffers: dict[int, list[np.ndarray]] = {}
        self.bytes = 0

    def take(self, floats: int) -> np.ndarray:
        """A flat float32 buffer of `floats` numbers with undefined content, aligned to 64 bytes.

        Keep a view of it, not the buffer: the pool counts references to know what is free.
        """
        held = self._buffers.setdefault(floats, [])
        for number in range(len(held)):
            if sys.getrefcount(held[number]) == _FREE:
                return held[number]
        held.append(_aligned(floats))
        self.bytes += floats * 4
        return held[-1]

    def clear(self) -> None:
        """Forget all buffers (those in use live on until their views are gone)."""
        self._buffers.clear()
        self.bytes = 0


def _aligned(floats: int) -> np.ndarray:
    raw = np.empty(floats * 4 + _ALIGN, np.uint8)
    start = -raw.ctypes.data % _ALIGN
    view = raw[start : start + floats * 4].view(np.float32)
    # A view of a view would collapse onto `raw`; an owner of its own keeps one reference per live view.
    return np.frombuffer(memoryview(view).cast("B"), np.float32)


def _count_free() -> int:
    """What sys.getrefcount says of a buffer that only the list holds (it differs between Python versions)."""
    held = [np.empty(1, np.float32)]
    return sys.getrefcount(held[0])


_FREE = _count_free()
