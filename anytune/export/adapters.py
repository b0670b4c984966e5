"""Several adapters as one: a weighted sum of low-rank changes is a low-rank change."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from anytune.adapter.adapter import Adapter
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


def combine(adapters: Sequence[tuple[Adapter, float]]) -> Adapter:
    """The sum of weight · scale · B·A: rank is the sum of ranks, scale is 1. One alone of weight 1 is returned itself.

    A tensor that only some adapt gets zeros for the others. What is noted of the base is the first one's. The
    template is theirs, if they were trained with one: UserError if with several.
    """
    templates = list(dict.fromkeys(adapter.chat_template for adapter, _ in adapters if adapter.chat_template))
    if len(templates) > 1:
        raise UserError(
            "The adapters were trained with different chat templates, and one model is served with one: "
            "add up adapters of one template."
        )
    if len(adapters) == 1 and adapters[0][1] == 1:
        return adapters[0][0]
    rank = sum(adapter.rank for adapter, _ in adapters)
    tensors: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    at = 0
    for adapter, weight in adapters:
        for name, (a, b) in adapter.tensors.items():
            if name not in tensors:
                tensors[name] = (np.zeros((rank, a.shape[1]), np.float32), np.zeros((b.shape[0], rank), np.float32))
            tensors[name][0][at : at + adapter.rank] = a
            tensors[name][1][:, at : at + adapter.rank] = np.float32(weight * adapter.scale) * b
        at += adapter.rank
    return replace(
        adapters[0][0],
        tensors=tensors,
        rank=rank,
        alpha=float(rank),
        rslora=False,
        chat_template=templates[0] if templates else None,
    )


def merged_rows(base: GGUF, adapter: Adapter) -> dict[str, Rows]:
    """For each adapted tensor a function that gives rows lo..hi of W + scale · B·A, float32."""

    def rows(name: str) -> Rows:
        a, b = adapter.tensors[name]
        scaled = np.float32(adapter.scale) * b
        return lambda lo, hi: rows_of(base, name, lo, hi) + scaled[lo:hi] @ a

    return {name: rows(name) for name in adapter.tensors}
