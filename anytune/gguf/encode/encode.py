"""encode(): which way each format is made, and in what portions."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable

import numpy as np

from anytune.gguf.blocks import BLOCKS
from anytune.gguf.encode import nearest
from anytune.gguf.encode.importance import weigh
from anytune.gguf.encode.searched import SEARCHES, search

NAMES = tuple(name for name in BLOCKS if name in nearest.FUNCTIONS or name in SEARCHES)
PORTION = 1 << 16  # weights at a time: what is between two steps stays in the cache
LARGEST = 6e4  # block scales are float16
FLOATS = ("F32", "F16", "BF16")
_compiling = threading.Lock()


def encode(x: np.ndarray, name: str, importance: np.ndarray | None = None, compiled: bool | None = None) -> np.ndarray:
    """Rows in the format `name`: float32 [rows, weights] -> uint8 [rows, row_bytes].

    importance: float32 [weights], what errors in each column cost, not negative; formats that have both ways search
    only with it (Q4_0, Q4_1, Q5_0, Q5_1), and the others of nearest.py have no use for it.
    compiled: None takes numba if it is installed. Threads may call it at once.
    Raises ValueError for another shape or format, and for weights that the format cannot hold.
    """
    if name not in NAMES:
        raise ValueError(f"there is no quantizer for {name}; there are {', '.join(NAMES)}")
    block = BLOCKS[name]
    if x.dtype != np.float32 or x.ndim != 2 or x.shape[1] % block.block_size:
        raise ValueError(f"{name} needs float32 rows of {block.block_size}s, not {x.dtype} {x.shape}")
    if importance is not None and importance.shape != x.shape[1:]:
        raise ValueError(f"importance {importance.shape} does not fit rows of {x.shape[1]}")
    if name == "F32":
        return np.ascontiguousarray(x, "<f4").view(np.uint8)
    searching = name in SEARCHES and (importance is not None or name not in nearest.FUNCTIONS)
    run = None if searching or compiled is False else _kernel(name)
    out = np.empty((len(x), block.row_bytes(x.shape[1])), np.uint8)
    step = max(1, PORTION // x.shape[1])
    for lo in range(0, len(x), step):
        rows, done = np.ascontiguousarray(x[lo : lo + step]), out[lo : lo + step]
        blocks = rows.reshape(-1, block.block_size)
        if name not in FLOATS and not max(rows.max(initial=0), -rows.min(initial=0)) < LARGEST:
            raise ValueError(f"it has weights that are not numbers, or larger than {name} can hold")
        if run is not None:
            run(rows.reshape(-1), done.reshape(-1), len(blocks))
        elif searching:
            w = np.ascontiguousarray(weigh(rows, name, block.block_size, importance))
            done[:] = search(name, blocks, w.reshape(blocks.shape), compiled).reshape(done.shape)
        else:
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                done[:] = nearest.FUNCTIONS[name](blocks).reshape(done.shape)
    return out


def _kernel(name: str) -> Callable | None:
    with _compiling:
        return _compiled(name)


@functools.cache
def _compiled(name: str) -> Callable | None:
    try:
        from anytune.gguf.encode import nearest_numba
    except ImportError:
        return None
    return nearest_numba.kernel(name)
