"""Hugging Face's names of a model's tensors, and its order of their rows and columns, as the architecture says them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from anytune.errors import UserError

from .architecture import Architecture, Orders
from .architectures import ARCHITECTURES

ENDS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "token_embd_norm": "model.embedding_norm",
    "output": "lm_head",
    "per_layer_token_embd": "model.embed_tokens_per_layer",
    "per_layer_model_proj": "model.per_layer_model_projection",
    "per_layer_proj_norm": "model.per_layer_projection_norm",
}
LAYER = "model.layers.{}.{}"
PARTS = ("gate", "up", "down")  # of an expert
TENSOR = re.compile(r"blk\.(\d{1,5})\.([\w.]+?)(?:\.(weight|bias))?")


def expert(part: str) -> str:
    """The tensor with this part of all of a layer's experts."""
    return f"ffn_{part}_exps"


def known(architecture: Any) -> Architecture:
    """Raises UserError for one whose names are not known."""
    if architecture not in ARCHITECTURES:
        raise UserError(f"peft's names for architecture {architecture!r} are not known; save it as .gguf.")
    return ARCHITECTURES[architecture]


def theirs(arch: Architecture, tensor: str) -> str | None:
    """Hugging Face's name of a tensor; None: there is none."""
    stem, _, kind = tensor.rpartition(".")
    if stem in ENDS:
        return f"{ENDS[stem]}.{kind}"
    found = TENSOR.fullmatch(tensor)
    if not found:
        return None
    layer, part, kind = found.groups()
    whole = arch.others.get(tensor.split(".", 2)[2])
    if whole is not None:
        return LAYER.format(int(layer), whole.name)
    module = arch.norms.get(part) or arch.modules.get(part) or arch.routers.get(part)
    return module and LAYER.format(int(layer), f"{module}.{kind}")


def ours(arch: Architecture, name: str) -> str | None:
    """The tensor that Hugging Face calls so; None: it is not known."""
    stem, _, kind = name.rpartition(".")
    ends = {module: end for end, module in ENDS.items()}
    if stem in ends:
        return f"{ends[stem]}.{kind}"
    found = re.fullmatch(r"model\.layers\.(\d{1,5})\.(.+)", name)
    if not found:
        return None
    start = f"blk.{int(found[1])}."
    for tensor, other in arch.others.items():
        if other.name == found[2]:
            return start + tensor
    named = [*arch.modules.items(), *arch.norms.items()]
    if arch.experts:
        named += arch.routers.items()
        named += ((expert(part), f"{arch.expert_names.module}.{part}_proj") for part in (*PARTS, "gate_up"))
    parts = {module: part for part, module in named}
    module, _, kind = found[2].rpartition(".")
    return f"{start}{parts[module]}.{kind}" if module in parts and kind in ("weight", "bias") else None


def orders(arch: Architecture, tensor: str, gguf) -> Orders:
    """How a GGUF's tensor differs in the order of rows and columns. Raises UserError where its metadata make no sense.

    gguf: may be None for a tensor that is in the same order.
    """
    found = TENSOR.fullmatch(tensor)
    if not found or found[2] not in arch.reordered:
        return None, None
    if gguf is None:
        raise UserError(f"the order of the rows of {tensor} depends on the base model: give it too.")
    return orders_of(arch, tensor, tuple(gguf.tensor(tensor).shape), gguf.metadata, str(gguf.path))


def orders_of(
    arch: Architecture, tensor: str, shape: tuple[int, ...], metadata: Mapping[str, Any], where: str
) -> Orders:
    """As orders(), of a tensor of this shape beside these metadata; where: goes into messages."""

    def number(*keys: str) -> int:
        value = next((metadata[key] for key in (f"{arch.name}.{k}" for k in keys) if key in metadata), None)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(f"{where}: {arch.name}.{keys[0]} is {value!r:.40}, which does not fit {tensor}.")
        return value

    found = TENSOR.fullmatch(tensor)
    order: Callable | None = arch.reordered.get(found[2]) if found else None
    try:
        made = (None, None) if order is None else order(shape, number)
    except ValueError:
        made = (np.zeros(0, np.int64), None)
    for axis, places in enumerate(made):
        if places is not None and len(places) != shape[axis]:
            raise UserError(f"{where}: the heads that its metadata promise do not fit {tensor}.")
    return made


def arranged(x: np.ndarray, made: Orders, back: bool = False) -> np.ndarray:
    """Rows and columns of x as Hugging Face has them; back: as the GGUF has them."""
    for axis, places in enumerate(made):
        if places is not None:
            x = np.take(x, np.argsort(places) if back else places, axis)
    return x
