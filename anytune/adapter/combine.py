"""Several adapters as one: a weighted sum of low-rank changes is a low-rank change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from anytune.adapter.adapter import Adapter
from anytune.adapter.fit import empty_pair
from anytune.errors import UserError


def combine(adapters: Sequence[tuple[Adapter, float]]) -> Adapter:
    """The sum of weight · scale · B·A: rank is the sum of ranks, scale is 1. One alone of weight 1 is returned itself.

    A tensor that only some adapt gets zeros for the others. What is noted of the base is the first one's. The
    template is theirs, if they were trained with one: UserError if with several.
    """
    templates = list(dict.fromkeys(adapter.chat_template for adapter, _ in adapters if adapter.chat_template))
    if len(templates) > 1:
        raise UserError(
            "The adapters were trained with different chat templates, and a model is served with one: combine only "
            "adapters with the same template."
        )
    if len(adapters) == 1 and adapters[0][1] == 1:
        return adapters[0][0]
    rank = sum(adapter.rank for adapter, _ in adapters)
    tensors: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    at = 0
    for adapter, weight in adapters:
        for name, (a, b) in adapter.tensors.items():
            if name not in tensors:
                tensors[name] = empty_pair(rank, a, b)
            tensors[name][0][..., at : at + adapter.rank, :] = a
            tensors[name][1][..., at : at + adapter.rank] = np.float32(weight * adapter.scale) * b
        at += adapter.rank
    return replace(
        adapters[0][0],
        tensors=tensors,
        rank=rank,
        alpha=float(rank),
        rslora=False,
        chat_template=templates[0] if templates else None,
    )
