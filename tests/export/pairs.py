"""Tiny models with random adapters that move them by some tenths of a nat."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from anytune.adapter.adapter import Adapter
from anytune.adapter.fit import LATENTS
from anytune.gguf import GGUF
from anytune.model.architectures import ARCHITECTURES
from anytune.model.modules import module_tensor

IDS = np.random.default_rng(1).integers(5, 320, 40).tolist()
TEXT = "the rest of the west wind was in the air and the old house stood there. " * 12


def adapter(
    path: Path,
    rank: int = 4,
    seed: int = 0,
    rslora: bool = False,
    size: float = 1.0,
    parts: tuple[str, ...] = ("attn_", "ffn_"),
    served: bool = False,
) -> Adapter:
    """Random pairs on the matrices whose names hold one of `parts`, with changes of about size / 2 of the weights;
    served: only where llama.cpp looks for them."""
    rng = np.random.default_rng(seed)
    tensors = {}
    with GGUF.open(path) as base:
        arch = base.metadata["general.architecture"]
        for name, t in base.tensors.items():
            module = module_tensor(name)
            if name.endswith(LATENTS) or served and module in ARCHITECTURES[arch].unadapted:
                continue
            if len(t.shape) > 1 and name.endswith(".weight") and "_inp." not in name and any(p in name for p in parts):
                *experts, out, width = t.shape
                a = rng.standard_normal((*experts, rank, width)) / np.sqrt(width)
                b = rng.standard_normal((*experts, out, rank)) * size / np.sqrt(rank)
                tensors[name] = a.astype(np.float32), b.astype(np.float32)
        alpha = 2.0 * (np.sqrt(rank) if rslora else rank) / 4
        return Adapter(tensors, rank, float(alpha), rslora, arch, "tiny", base.sha256())
