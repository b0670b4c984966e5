"""Fast dequantization: a numba function for each common block format, compiled when it is first asked for.

    KERNELS[name](src, src_stride, src_offset, dst, dst_stride, dst_offset, rows, blocks)

converts `blocks` blocks of each of `rows` rows. src: uint8 [n], flat, its stride and offset in bytes; dst:
float32 [m], flat, its stride and offset in floats. Nothing is checked; results are bit-equal to blocks.py's.
Formats without a kernel of their own, and every format where numba is missing, go through blocks.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from anytune.gguf.blocks import BLOCKS, CHUNK


class _Kernels(Mapping):
    """A mapping that compiles at the first look-up, so that start-up pays only for the formats in use."""

    def __init__(self) -> None:
        self._ready: dict[str, Callable] = {}

    def __getitem__(self, name: str) -> Callable:
        if name not in self._ready:
            self._ready[name] = _compiled(name) or _plain(name)
        return self._ready[name]

    def __contains__(self, name: object) -> bool:
        return name in BLOCKS  # Mapping's own would compile

    def __iter__(self) -> Iterator[str]:
        return iter(BLOCKS)

    def __len__(self) -> int:
        return len(BLOCKS)


def _compiled(name: str) -> Callable | None:
    try:
        from anytune.gguf import kernels_numba
    except ImportError:
        return None
    return kernels_numba.kernel(name)


def _plain(name: str) -> Callable:
    """The same signature on blocks.py's NumPy functions."""
    block = BLOCKS[name]

    def convert(
        src: np.ndarray,
        src_stride: int,
        src_offset: int,
        dst: np.ndarray,
        dst_stride: int,
        dst_offset: int,
        rows: int,
        blocks: int,
    ) -> None:
        if rows <= 0 or blocks <= 0:
            return
        window = np.lib.stride_tricks.as_strided
        source = window(src[src_offset:], (rows, blocks, block.type_size), (src_stride, block.type_size, 1))
        target = window(dst[dst_offset:], (rows, blocks, block.block_size), (4 * dst_stride, 4 * block.block_size, 4))
        step = max(1, CHUNK // (blocks * block.block_size))
        with np.errstate(invalid="ignore", over="ignore"):
            for i in range(0, rows, step):
                part = source[i : i + step].reshape(-1, block.type_size)
                target[i : i + step] = block.dequantize(part).reshape(-1, blocks, block.block_size)

    return convert


KERNELS: Mapping[str, Callable] = _Kernels()
