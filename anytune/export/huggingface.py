"""A model, with an adapter merged into it, as a folder that transformers and MLX load.

Weights go through in rows: read or merged, put in Hugging Face's order, and written in 16 or 32 bits, so that memory
stays at a tensor's size at most.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from typing import IO, Any

import numpy as np

from anytune.adapter.adapter import Adapter
from anytune.errors import UserError
from anytune.export.adapters import merged_rows
from anytune.export.config import config_json, generation_json, index_json, shard_name
from anytune.folder import new_folder
from anytune.export.tokenizer import write_tokenizer
from anytune.files import atomic_write
from anytune.gguf import GGUF
from anytune.gguf.encode import encode
from anytune.model import naming
from anytune.model.config import Config, read_config
from anytune.quantization.rewrite import PIECE, Rows, rows_of

SHARD = 5 << 30  # bytes of a weights file
BLOCKS = {"bf16": "BF16", "f16": "F16", "f32": "F32"}
LEFT_OUT = ("rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight")  # config.json says it


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
    if config.router is not None:
        raise UserError(
            f"{config.architecture} has experts, which Hugging Face exports do not write: use `export merge` for "
            "a GGUF file, or `export gguf` for the adapter alone."
        )
    files = {"config.json": config_json(base, config, dtype)}
    names = {name: _name(name, config) for name in base.tensors if name not in LEFT_OUT and not config.ignores(name)}
    sizes = {name: base.tensors[name].n_elements * (4 if dtype == "f32" else 2) for name in names}
    shards = _shards(sizes, shard)
    total = sum(sizes.values())
    if template is None and adapter is not None:
        template = adapter.chat_template
    done, weights = 0, sum(base.tensors[name].n_elements for name in names)
    values = merged_rows(base, adapter) if adapter is not None else {}
    with new_folder(folder, total + (64 << 20), force) as made:
        if tokenizer:
            files["generation_config.json"] = generation_json(base)
            write_tokenizer(base, made, template)
        places = []
        for number, members in enumerate(shards, start=1):
            file = shard_name(number, len(shards))
            places += [(names[name], sizes[name], file) for name in members]
            with atomic_write(made / file) as out:
                _header(out, [(names[name], _shape(base, name, config), sizes[name]) for name in members], dtype)
                for name in members:
                    for part in _pieces(base, name, values.get(name), config, dtype):
                        out.write(part)
                        done += part.nbytes // (4 if dtype == "f32" else 2)
                        if progress is not None:
                            progress(done, weights)
        if len(shards) > 1:
            files["model.safetensors.index.json"] = index_json(places)
        for name, content in files.items():
            with atomic_write(made / name, "w") as out:
                json.dump(content, out, indent=2)
    return {"path": str(folder), "dtype": dtype, "tensors": len(names), "bytes": total, "shards": len(shards)}


def _name(name: str, config: Config) -> str:
    """Hugging Face's name of a tensor. UserError if there is none."""
    found = naming.theirs(config.arch, name)
    if not found:
        raise UserError(
            f"The tensor {name} has no name in Hugging Face's layout of {config.architecture}: this model cannot be "
            "exported."
        )
    return found


def _shards(sizes: dict[str, int], limit: int) -> list[list[str]]:
    """Names in order, as many to a file as fit."""
    shards: list[list[str]] = [[]]
    taken = 0
    for name, size in sizes.items():
        if shards[-1] and taken + size > limit:
            shards.append([])
            taken = 0
        shards[-1].append(name)
        taken += size
    return shards


def _header(out: IO, tensors: list[tuple[str, tuple[int, ...], int]], dtype: str) -> None:
    """The head of a safetensors file: its length as uint64, then names, shapes and places as JSON, a multiple of 8."""
    head: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, shape, size in tensors:
        head[name] = {"dtype": BLOCKS[dtype], "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    out.write(len(text).to_bytes(8, "little") + text)


def _shape(base: GGUF, name: str, config: Config) -> tuple[int, ...]:
    other = config.arch.others.get(name.split(".", 2)[-1])
    return tuple(base.tensors[name].shape) if other is None else other.shape(base.tensors[name].shape)


def _pieces(base: GGUF, name: str, values: Rows | None, config: Config, dtype: str) -> Iterator[np.ndarray]:
    """A tensor's rows in Hugging Face's order and in `dtype`, a portion at a time: uint8 [rows, row_bytes]."""
    t, arch = base.tensors[name], config.arch
    order, other = naming.orders(arch, name, base), arch.others.get(name.split(".", 2)[-1])
    values = values or (lambda lo, hi: rows_of(base, name, lo, hi))
    step = t.rows if order[0] is not None else max(1, PIECE // t.shape[-1])
    for lo in range(0, t.rows, step):
        x = values(lo, min(lo + step, t.rows))
        if len(t.shape) == 1:  # its numbers are turned as rows
            x = naming.arranged(x.reshape(-1), order).reshape(x.shape)
        else:
            x = naming.arranged(x, order)
        if arch.stores_unit(name):
            x = x - np.float32(1)
        if other is not None:
            x = other.there(x)
        blocks = encode(np.ascontiguousarray(x, np.float32), BLOCKS[dtype])
        if dtype == "f16" and np.isinf(blocks.view(np.float16)).any():
            raise UserError(f"{name} has weights beyond float16's range: use --type bf16 or f32.")
        yield blocks
