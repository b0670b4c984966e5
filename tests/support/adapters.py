"""A random adapter of a tiny model, strong enough to change what it writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def random_adapter(model: Path, out: Path, seed: int = 1) -> Path:
    """Write it to `out` and return that. model: the GGUF file that it is for."""
    from anytune.adapter.adapter import Adapter
    from anytune.gguf import GGUF

    gguf, rng, tensors = GGUF.open(model), np.random.default_rng(seed), {}
    for name in ("blk.0.attn_q.weight", "blk.1.ffn_down.weight"):
        rows, columns = gguf.tensors[name].shape
        tensors[name] = (
            rng.standard_normal((4, columns)).astype(np.float32),
            (0.1 * rng.standard_normal((rows, 4))).astype(np.float32),
        )
    Adapter(
        tensors=tensors,
        rank=4,
        alpha=8.0,
        rslora=False,
        architecture=gguf.metadata["general.architecture"],
        base_name="tiny",
        base_sha256=gguf.sha256(),
        chat_template=gguf.metadata.get("tokenizer.chat_template"),
    ).save(out)
    return out
