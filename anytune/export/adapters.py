"""Several adapters as one: a weighted sum of low-rank changes is a low-rank change."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from anytune.adapter.adapter import Adapter
from anytune.adapter.combine import combine
from anytune.adapter.scaled import before_scale
from anytune.errors import UserError
from anytune.gguf import GGUF
from anytune.quantization.rewrite import Rows, rows_of


def load(
    sources: Sequence[tuple[str | Path, float]], base: GGUF, tell: Callable[[str], None] = lambda _: None
) -> Adapter:
    """The adapters (GGUF files or peft folders) of these weights as one. UserError if one does not fit `base`.

    tell: called with a sentence about each that was made on another file.
    """
    for path, weight in sources:
        if not Path(path).exists():
            raise UserError(f"There is no adapter {path}: check the path.")
        if not math.isfinite(weight) or not weight:
            raise UserError(f"The weight {weight} of {path} must be a number other than 0.")
    found = [(Adapter.load(path, gguf=base), weight) for path, weight in sources]
    for remark in dict.fromkeys(adapter.other_base(base) for adapter, _ in found):
        if remark is not None:
            tell(remark)
    return combine(found)


def change_of(a: np.ndarray, b: np.ndarray, lo: int, hi: int) -> np.ndarray:
    """Rows lo..hi of b a, float32; of experts, [experts, rank, in] and [experts, out, rank], one after another."""
    if a.ndim == 2:
        return b[lo:hi] @ a
    out, parts = b.shape[1], []
    for expert in range(lo // out, -(-hi // out)):
        first = expert * out
        parts.append(b[expert, max(lo - first, 0) : hi - first] @ a[expert])
    return np.concatenate(parts)


def merged_rows(base: GGUF, adapter: Adapter) -> dict[str, Rows]:
    """For each adapted tensor a function that gives rows lo..hi of W + scale · B·A, float32."""

    def rows(name: str) -> Rows:
        a, b = adapter.tensors[name]
        scaled = np.float32(adapter.scale) * before_scale(base, name, b)
        return lambda lo, hi: rows_of(base, name, lo, hi) + change_of(a, scaled, lo, hi)

    return {name: rows(name) for name in adapter.tensors}
