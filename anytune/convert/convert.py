"""convert(): a Hugging Face folder into one GGUF file."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from anytune.convert.names import gguf_name, is_behind
from anytune.convert.checkpoint import Weight, read_weights
from anytune.convert.experts import Stack, stacked
from anytune.convert.latents import split_latents
from anytune.convert.metadata import metadata, notes, rope_factors, text_config
from anytune.convert.vocabulary import vocabulary
from anytune.errors import UserError
from anytune.files import read_json, spare_inputs
from anytune.gguf import GGUF, write_gguf
from anytune.gguf.encode import encode
from anytune.model import naming
from anytune.model.architecture import Architecture, Orders
from anytune.model.architectures import ARCHITECTURES
from anytune.model.build import check_model
from anytune.model.config import read_config
from anytune.quantization.filetypes import FILE_TYPES, file_type

FLOAT32 = ("_norm.weight", ".bias", ".ffn_gate_inp.weight")  # routers choose by small differences
PIECE = 8 << 20  # weights at a time
FLOATS = ("F32", "F16", "BF16")
Progress = Callable[[int, int], None]


def convert(
    folder: str | os.PathLike,
    target: str | os.PathLike,
    kind: str | None = None,
    *,
    pre: str | None = None,
    name: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write the model of a Hugging Face folder to `target`, whole or not at all; returns facts.

    kind: a name of quantization.filetypes.FILE_TYPES; None: the folder's own of F32, F16 and BF16. In these the
    matrices are the folder's to the bit (vectors are F32, as llama.cpp wants them); other types are quantized from
    them. pre: see vocabulary(). name: general.name; None: the folder's. progress: called with (weights done, of how
    many), twice over for a quantized type. Raises UserError.
    """
    folder, target = Path(folder), Path(target)
    wanted = None if kind is None else file_type(kind)
    spare_inputs([target], [("the folder", folder)])
    config = read_json(folder / "config.json")
    architecture, config = text_config(config)
    if config.get("quantization_config"):
        raise UserError(
            f"{folder} has weights that are already quantized (quantization_config in config.json): get the 16-bit "
            "version."
        )
    tied = bool(config.get("tie_word_embeddings", architecture.startswith("gemma")))
    arch = ARCHITECTURES[architecture]
    read = {name: weight for name, weight in read_weights(folder).items() if not is_behind(name, config)}
    read = stacked(read, arch.expert_names.fused)
    weights = _renamed(split_latents(read, config) if arch.latent else read, architecture, tied)
    words = vocabulary(folder, architecture, config, pre)
    own = _own_type(weights)
    floats = wanted.name if wanted is not None and wanted.name in FLOATS else own
    tokens = len(words["tokenizer.ggml.tokens"])
    meta = {
        **metadata(architecture, config, name or _name(folder), tokens),
        **words,
        "general.file_type": FILE_TYPES[floats].number,
    }
    table = _tensors(weights, ARCHITECTURES[architecture], meta, config, floats, tokens, progress)
    if wanted is None or wanted.name in FLOATS:
        write_gguf(target, meta, table)
        _check(target)
    else:
        _quantized(target, meta, table, wanted.name, progress)
    return {
        "path": str(target),
        "architecture": architecture,
        "type": (wanted or FILE_TYPES[floats]).name,
        "tensors": len(table),
        "parameters": sum(int(np.prod(shape)) for _, shape, _, _ in table),
        "bytes": target.stat().st_size,
        "pre": words.get("tokenizer.ggml.pre"),
        "tokens": tokens,
        "notes": notes(architecture, config),
    }


def _name(folder: Path) -> str:
    """As the hub's cache has it (models--owner--name/snapshots/…), or the folder's own name."""
    for part in (folder.resolve(), *folder.resolve().parents):
        if part.name.startswith("models--"):
            return part.name.rpartition("--")[2]
    return folder.resolve().name


def _renamed(weights: dict[str, Weight | Stack], architecture: str, tied: bool) -> dict[str, Weight | Stack]:
    found: dict[str, Weight | Stack] = {}
    for theirs, weight in weights.items():
        ours = gguf_name(theirs, architecture)
        if ours is None or (tied and ours == "output.weight"):
            continue
        if ours in found:
            raise UserError(f"Two weights map to {ours} ({theirs} is the second): the model's layout is not known.")
        found[ours] = weight
    if "token_embd.weight" not in found:
        raise UserError("The folder has no embedding (model.embed_tokens.weight): it is not a complete model.")
    return found


def _own_type(weights: dict[str, Weight | Stack]) -> str:
    """The type that holds every matrix as it is: BF16 or F16 where all are that, else F32."""
    kinds = {weight.dtype for weight in weights.values() if len(weight.shape) > 1}
    return kinds.pop() if len(kinds) == 1 and kinds <= {"BF16", "F16"} else "F32"


def _tensors(
    weights: dict[str, Weight | Stack],
    arch: Architecture,
    meta: dict[str, Any],
    config: dict[str, Any],
    kind: str,
    tokens: int,
    progress: Progress | None,
) -> list[tuple[str, tuple[int, ...], str, Any]]:
    """What write_gguf takes, each tensor read when its turn comes."""
    architecture = arch.name
    if weights["token_embd.weight"].shape[0] < tokens and not architecture.startswith("gemma"):
        raise UserError(
            f"The tokenizer has {tokens} tokens and the embedding {weights['token_embd.weight'].shape[0]} "
            "rows: they belong to different models."
        )
    total = sum(int(np.prod(weight.shape)) for weight in weights.values())
    done = [0]

    def told(values: np.ndarray) -> None:
        done[0] += values.size
        if progress is not None:
            progress(done[0], total)

    table: list[tuple[str, tuple[int, ...], str, Any]] = []
    for name, factors in rope_factors(architecture, config).items():
        table.append((name, factors.shape, "F32", factors))
    for name, weight in weights.items():
        # the rows beyond the vocabulary are padding that llama.cpp's converter leaves out for Gemma
        rows = (
            min(weight.shape[0], tokens) if architecture.startswith("gemma") and name == "token_embd.weight" else None
        )
        shape = tuple(n for n in (rows or weight.shape[0], *weight.shape[1:]))
        if name.split(".", 2)[-1] in arch.others and len(shape) == 3:
            shape = (shape[0], shape[2])
        if name.endswith(".ffn_gate_inp_shexp.weight"):
            shape = shape[-1:]  # one row
        plain = len(shape) > 1 and not name.endswith(FLOAT32) and not arch.is_constant(name)
        order = naming.orders_of(arch, name, shape, meta, "config.json")
        table.append(
            (name, shape, kind if plain else "F32", _data(name, weight, shape, plain and kind, order, arch, told))
        )
    return table


def _data(
    name: str,
    weight: Weight | Stack,
    shape: tuple[int, ...],
    kind: str | bool,
    order: Orders,
    arch: Architecture,
    told: Callable[[np.ndarray], None],
) -> Callable[[], Iterator[np.ndarray]]:
    """Portions of uint8 blocks of a tensor, in GGUF's order of rows. kind: False for F32."""
    other = arch.others.get(name.split(".", 2)[-1])

    def portions() -> Iterator[np.ndarray]:
        ranges = [(0, shape[0])] if order[0] is not None else weight.pieces(PIECE)
        for low, high in ranges:
            values = weight.rows(low, min(high, shape[0])) if low < shape[0] else None
            if values is None:
                return
            values = values.reshape(-1, *shape[1:])
            values = naming.arranged(values, order, True)
            if arch.stores_unit(name):
                values = values + np.float32(1)
            if other is not None:
                values = other.here(values)
            told(values)
            stored = kind or "F32"
            blocks = encode(np.ascontiguousarray(values.reshape(-1, shape[-1]), np.float32), stored)
            if stored == "F16" and np.isinf(blocks.view(np.float16)).any():
                raise UserError(f"{weight.file} has weights beyond float16's range: use BF16 or F32.")
            yield blocks

    return portions


def _quantized(target: Path, meta: dict[str, Any], table: list, kind: str, progress: Progress | None) -> None:
    """Through a file in the folder's own type, beside the target."""
    from anytune.quantization.run import quantize

    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as made:
        between = Path(made) / "float.gguf"
        write_gguf(between, meta, table)
        _check(between)
        quantize(between, target, kind, progress=progress)


def _check(path: Path) -> None:
    """Whether what was written is a model that anytune trains; if not, it does not stay."""
    try:
        with GGUF.open(path) as gguf:
            check_model(gguf, read_config(gguf))
    except UserError:
        path.unlink()
        raise
