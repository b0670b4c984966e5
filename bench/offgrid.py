"""A model whose weights were rounded once, as one whose weights lie on no grid and that computes the same.

Its columns are scaled by random factors that the norms and the rows before them take back.
"""

from __future__ import annotations

from pathlib import Path

import common  # noqa: F401 (it puts the working tree on the path)
import numpy as np

from anytune.gguf import GGUF, write_gguf


def off_the_grid(path: Path) -> dict[str, np.ndarray]:
    """The model's tensors as float32, columns rescaled as the text above says."""
    rng = np.random.default_rng(0)
    with GGUF.open(path) as file:
        tensors = {name: file.float32(name) for name in file.tensors}
        arch = file.metadata["general.architecture"]
        layers, heads, keys = (
            file.metadata[f"{arch}.{key}"] for key in ("block_count", "attention.head_count", "attention.head_count_kv")
        )

    def factors(n: int) -> np.ndarray:
        return np.exp(0.25 * rng.standard_normal(n)).astype(np.float32)

    for i in range(layers):
        t = {
            part: f"blk.{i}.{part}.weight"
            for part in (
                "attn_norm",
                "attn_q",
                "attn_k",
                "attn_v",
                "attn_output",
                "ffn_norm",
                "ffn_gate",
                "ffn_up",
                "ffn_down",
            )
        }
        for norm, readers in (("attn_norm", ("attn_q", "attn_k", "attn_v")), ("ffn_norm", ("ffn_gate", "ffn_up"))):
            c = factors(len(tensors[t[norm]]))
            tensors[t[norm]] /= c
            for reader in readers:
                tensors[t[reader]] *= c
        c = factors(len(tensors[t["ffn_up"]]))
        tensors[t["ffn_up"]] /= c[:, None]
        tensors[t["ffn_down"]] *= c
        c = factors(len(tensors[t["attn_v"]]))
        tensors[t["attn_v"]] /= c[:, None]
        tensors[t["attn_output"]] *= np.repeat(c.reshape(keys, 1, -1), heads // keys, axis=1).ravel()
    return tensors


def texts() -> tuple[str, str]:
    """(to measure importance on, to measure perplexity on)."""
    from pydoc_data.topics import topics

    whole = "\n".join(topics[key] for key in sorted(topics))
    return whole[100_000:200_000], whole[:60_000]


def write_f16(source: Path, target: Path) -> Path:
    """The model off the grid, matrices in F16."""
    tensors = off_the_grid(source)
    with GGUF.open(source) as file:
        write_gguf(
            target,
            file.metadata | {"general.file_type": 1},
            [
                (
                    name,
                    x.shape,
                    "F16" if x.ndim > 1 else "F32",
                    x.astype(np.float16).view(np.uint8) if x.ndim > 1 else x,
                )
                for name, x in tensors.items()
            ],
            kinds=file.kinds,
        )
    return target
