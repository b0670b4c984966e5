"""A model, with an adapter merged into it, as a folder that transformers and MLX load.

Weights go through in rows: read or merged, put in Hugging Face's order, and written in 16 or 32 bits, so that memory
stays at a tensor's size at most.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import IO, Any

import numpy as np

from anytune.adapter.adapter import Adapter
from anytune.errors import UserError
from anytune.export.adapters import merged_rows
from anytune.export.config import config_json, generation_json, index_json, shard_name
from anytune.export.tokenizer import write_tokenizer
from anytune.export.weights import Weight, weights_of
from anytune.files import atomic_write
from anytune.folder import new_folder
from anytune.gguf import GGUF
from anytune.gguf.encode import encode
from anytune.model.config import read_config

SHARD = 5 << 30  # bytes of a weights file
BLOCKS = {"bf16": "BF16", "f16": "F16", "f32": "F32"}


def save(
    base: GGUF,
    adapter: Adapter | None,
    folder: str | os.PathLike,
    *,
    dtype: str = "bf16",
    shard: int = SHARD,
    tokenizer: bool = True,
    template: str | None = None,
    progress: Callable[[int, int], None] | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """Write config.json, generation_config.json, the tokenizer and the weights of base and adapter to a new folder.

    dtype: bf16, f16 or f32. shard: bytes of one weights file at most. template: the chat template, in place of the
    adapter's or the model's. progress: called with (weights done, of how many). force: replace an earlier export.
    Returns facts. Raises UserError.
    """
    config = read_config(base)
    files = {"config.json": config_json(base, config, dtype)}
    weights = weights_of(base, config, merged_rows(base, adapter) if adapter is not None else {})
    sizes = [_bytes(weight, dtype) for weight in weights]
    shards = _shards(sizes, shard)
    total, count = sum(sizes), sum(weight.count for weight in weights)
    if template is None and adapter is not None:
        template = adapter.chat_template
    done = 0
    with new_folder(folder, total + (64 << 20), force) as made:
        if tokenizer:
            files["generation_config.json"] = generation_json(base)
            write_tokenizer(base, made, template)
        places = []
        for number, members in enumerate(shards, start=1):
            file = shard_name(number, len(shards))
            places += [(weights[i].name, sizes[i], file) for i in members]
            with atomic_write(made / file) as out:
                _header(out, [weights[i] for i in members], dtype)
                for weight in (weights[i] for i in members):
                    for part in weight.pieces():
                        out.write(_encoded(weight, part, dtype))
                        done += part.size
                        if progress is not None:
                            progress(done, count)
        if len(shards) > 1:
            files["model.safetensors.index.json"] = index_json(places)
        for name, content in files.items():
            with atomic_write(made / name, "w") as out:
                json.dump(content, out, indent=2)
    return {"path": str(folder), "dtype": dtype, "tensors": len(weights), "bytes": total, "shards": len(shards)}


def _bytes(weight: Weight, dtype: str) -> int:
    return weight.count * (4 if weight.stored(dtype) == "f32" else 2)


def _shards(sizes: list[int], limit: int) -> list[list[int]]:
    """Numbers of weights in order, as many to a file as fit."""
    shards: list[list[int]] = [[]]
    taken = 0
    for number, size in enumerate(sizes):
        if shards[-1] and taken + size > limit:
            shards.append([])
            taken = 0
        shards[-1].append(number)
        taken += size
    return shards


def _header(out: IO, weights: list[Weight], dtype: str) -> None:
    """The head of a safetensors file: its length as uint64, then names, shapes and places as JSON, a multiple of 8."""
    head: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for weight in weights:
        end = at + _bytes(weight, dtype)
        kind = BLOCKS[weight.stored(dtype)]
        head[weight.name] = {"dtype": kind, "shape": list(weight.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    out.write(len(text).to_bytes(8, "little") + text)


def _encoded(weight: Weight, x: np.ndarray, dtype: str) -> np.ndarray:
    """uint8 [rows, row_bytes]. UserError for what float16 cannot hold."""
    stored = weight.stored(dtype)
    blocks = encode(np.ascontiguousarray(x, np.float32), BLOCKS[stored])
    if stored == "f16" and np.isinf(blocks.view(np.float16)).any():
        raise UserError(f"{weight.name} has weights beyond float16's range: use --type bf16 or f32.")
    return blocks
