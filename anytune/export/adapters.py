"""Several adapters as one: a weighted sum of low-rank changes is a low-rank change."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from anytune.adapter import Adapter
from anytune.errors import UserError
from anytune.gguf import GGUF
from anytune.quantization.rewrite import Rows, rows_of


def load(sources: Sequence[tuple[str | Path, float]], base: GGUF) -> Adapter:
    """The adapters (GGUF files or peft folders) of these weights as one. UserError if one does not fit `base`."""
    for path, weight in sources:
        if not Path(path).exists():
            raise UserError(f"There is no adapter {path}: check the path.")
        if not math.isfinite(weight) or not weight:
            raise UserError(f"The weight {weight} of {path} must be a number other than 0.")
    return combine([(Adapter.load(path, gguf=base), weight) for path, weight in sources])


def combine(adapters: Sequence[tuple[Adapter, float]]) -> Adapter:
    """The sum of weight · scale · B·A: rank is the sum of ranks, scale is 1. One alone of weight 1 is returned itself.

    A tensor that only some adapt gets zeros for the others. What is noted of the base is the first one's; the template
    is the first that there is.
    """
    if len(adapters) == 1 and adapters[0][1] == 1:
        return adapters[0][0]
    rank = sum(adapter.rank for adapter, _ in adapters)
    tensors: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    at = 0
    for adapter, weight in adapters:
        for name, (a, b) in adapter.tensors.items():
            if name not in tensors:
                tensors[name] = (np.zeros((rank, a.shape[1]), np.float32), np.zeros((b.shape[0], rank), np.float32))
            tensors[name][0][at:at + adapter.rank] = a
            tensors[name][1][:, at:at + adapter.rank] = np.float32(weight * adapter.scale) * b
        at += adapter.rank
    template = next((a.chat_template for a, _ in adapters if a.chat_template), None)
    return replace(adapters[0][0], tensors=tensors, rank=rank, alpha=float(rank), rslora=False, chat_template=template)


def merged_rows(base: GGUF, adapter: Adapter) -> dict[str, Rows]:
    """For each adapted tensor a function that gives rows lo..hi of W + scale · B·A, float32."""
    def rows(name: str) -> Rows:
        a, b = adapter.tensors[name]
        scaled = np.float32(adapter.scale) * b
        return lambda lo, hi: rows_of(base, name, lo, hi) + scaled[lo:hi] @ a
    return {name: rows(name) for name in adapter.tensors}
