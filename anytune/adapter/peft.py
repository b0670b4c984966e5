"""An adapter as a peft folder: adapter_config.json, adapter_model.safetensors, chat_template.jinja.

The weights are the same; the names are Hugging Face's, and so is the order of rows and columns: what llama.cpp's
converter moves (the halves of llama's query and key heads, the value heads of qwen35) is undone in lora_B and lora_A.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from anytune.adapter import peft_experts
from anytune.adapter.fit import check_fit, check_shapes, level
from anytune.adapter.peft_read import NEEDED, PREFIX, Found, read_weights
from anytune.adapter.scaled import after_scale, before_scale
from anytune.adapter.settings import read_settings
from anytune.errors import UserError
from anytune.files import atomic_write, cannot_write, read_json
from anytune.gguf import GGUF
from anytune.model import naming
from anytune.model.architecture import Architecture
from anytune.model.architectures import ARCHITECTURES

if TYPE_CHECKING:
    from anytune.adapter.adapter import Adapter

CONFIG, WEIGHTS, TEMPLATE = "adapter_config.json", "adapter_model.safetensors", "chat_template.jinja"
FILES = (CONFIG, WEIGHTS, TEMPLATE)
TEXT_LIMIT = 4 << 20  # bytes of the configuration, and of the template


def save(adapter: Adapter, folder: Path, gguf: GGUF | None) -> None:
    """Write the folder, weights first. UserError if peft has no name for something, or the disk is full."""
    from safetensors.numpy import save as to_bytes

    arch, target = naming.known(adapter.architecture), _Target(adapter)
    for name, (a, b) in adapter.tensors.items():
        if peft_experts.TENSOR.fullmatch(name):
            continue
        module, (rows, columns) = _module(arch, name), naming.orders(arch, name, gguf)
        pair = naming.arranged(a, (None, columns)), naming.arranged(b, (rows, None))
        target.add(module, f"{module}.weight" if _by_parameter(arch, name, module) else None, *pair)
    for place, parameter, pair in peft_experts.parameters(arch, _before_scale(adapter, arch, gguf)):
        target.add(place, parameter, *peft_experts.flat(pair), rank=pair[0].shape[1])
    layers = gguf.metadata.get(f"{adapter.architecture}.block_count") if gguf else None
    config = target.config(layers)
    own = {
        "architecture": adapter.architecture,
        "rank": adapter.rank,
        "alpha": adapter.alpha,
        "rslora": adapter.rslora,
        "base_name": adapter.base_name,
        "base_sha256": adapter.base_sha256,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(folder / WEIGHTS) as file:
            file.write(to_bytes(target.tensors, metadata={"anytune": json.dumps(own, sort_keys=True)}))
        if adapter.chat_template is not None:
            with atomic_write(folder / TEMPLATE, "w") as file:
                file.write(adapter.chat_template)
        with atomic_write(folder / CONFIG, "w") as file:
            json.dump(config, file, indent=2)
    except OSError as error:
        raise cannot_write(folder, error) from None


def load(folder: Path, gguf: GGUF | None) -> tuple[Any, ...]:
    """Read the folder -> an Adapter's fields, in order. gguf: the base, needed unless anytune wrote the folder."""
    settings = read_settings(read_json(folder / CONFIG, TEXT_LIMIT, NEEDED), folder / CONFIG)
    raw, own = read_weights(folder / WEIGHTS)
    architecture = gguf.metadata.get("general.architecture") if gguf else own.get("architecture")
    if architecture not in ARCHITECTURES:
        raise UserError(f"{folder}: its architecture is unknown; give the base model too.")
    arch = ARCHITECTURES[architecture]
    found = Found(folder, arch, gguf, settings)
    for key, array in raw.items():
        found.add(key, array)
    pairs, scales = found.pairs()
    shapes = {name: (a.shape, b.shape) for name, (a, b) in pairs.items()}
    ranks = check_shapes(str(folder), shapes)
    if gguf is not None:
        check_fit(str(folder), architecture, shapes, gguf)
    else:
        _refuse_scales(arch, shapes)
    tensors = {}
    for name, (a, b) in pairs.items():
        rows, columns = naming.orders(arch, name, gguf)
        b = naming.arranged(b, (rows, None), True)
        tensors[name] = naming.arranged(a, (None, columns), True), b if gguf is None else after_scale(gguf, name, b)
    template, text = folder / TEMPLATE, None
    if template.is_file() and template.stat().st_size < TEXT_LIMIT:
        text = template.read_text("utf-8-sig", "replace")
    rank, alpha, rslora = settings.rank, settings.alpha, settings.rslora
    usual = settings.scale(rank, alpha)
    if set(ranks.values()) != {rank} or not all(math.isclose(scale, usual) for scale in scales.values()):
        (tensors, rank, alpha), rslora = level(str(folder), tensors, scales), False
    name, sha256 = own.get("base_name") or settings.base, own.get("base_sha256")
    return tensors, rank, alpha, rslora, architecture, name, sha256, text


def _module(arch: Architecture, name: str) -> str:
    """Hugging Face's module of a base tensor: "blk.0.attn_q.weight" -> "model.layers.0.self_attn.q_proj"."""
    found = naming.theirs(arch, name)
    part = name.split(".", 2)[2] if name.startswith("blk.") else name
    if found is None or part.removesuffix(".weight") not in (*arch.modules, *arch.routers, "output"):
        raise UserError(f"peft's name for {name} is not known here; save the adapter as .gguf.")
    return found.removesuffix(".weight")


def _before_scale(adapter: Adapter, arch: Architecture, gguf: GGUF | None) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The pairs as peft has them, beside the weights. UserError if that needs the base model."""
    if gguf is not None:
        return {name: (a, before_scale(gguf, name, b)) for name, (a, b) in adapter.tensors.items()}
    _refuse_scales(arch, adapter.tensors)
    return adapter.tensors


def _refuse_scales(arch: Architecture, names: Iterable[str]) -> None:
    """UserError if some of these tensors have scales."""
    if "ffn_down_exps.scale" in arch.others and any("ffn_down_exps" in name for name in names):
        raise UserError("The scales of this model's experts are between peft's pairs and its own: give the base model.")


def _by_parameter(arch: Architecture, name: str, module: str) -> bool:
    """Whether peft must be told of the weight, not of the module: a router is none of torch's linears, and names of
    feed-forwards beside experts would be taken for experts'."""
    return name.split(".")[2:3] == ["ffn_gate_inp"] or arch.experts == "all" and ".mlp." in module


class _Target:
    """What is written: weights by name, and what adapter_config.json says of them."""

    def __init__(self, adapter: Adapter):
        self.adapter = adapter
        self.tensors: dict[str, np.ndarray] = {}
        self.modules: list[str] = []
        self.parameters: list[str] = []
        self.ranks: dict[str, int] = {}  # of each parameter

    def add(self, module: str, parameter: str | None, a: np.ndarray, b: np.ndarray, rank: int | None = None) -> None:
        """A and B under the module's name; parameter: what is adapted, where it is not the module's weight."""
        for side, part in (("A", a), ("B", b)):
            self.tensors[f"{PREFIX}{module}.lora_{side}.weight"] = np.ascontiguousarray(part, np.float32)
        if parameter is None:
            self.modules.append(module)
        else:
            self.parameters.append(parameter)
            self.ranks[parameter] = rank or self.adapter.rank

    def config(self, layers: int | None) -> dict[str, Any]:
        """layers: of the model, if known."""
        adapter = self.adapter
        made: dict[str, Any] = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": adapter.base_name or "",
            "r": adapter.rank,
            "lora_alpha": _whole(adapter.alpha),
            "use_rslora": adapter.rslora,
            "target_modules": _shortened(self.modules, layers, 1),
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
        }
        if self.parameters:
            made["target_parameters"] = _shortened(self.parameters, layers, 3)
        wide = {re.escape(name): rank for name, rank in self.ranks.items() if rank != adapter.rank}
        if wide:  # their alpha is such that the scale is the others'
            made["rank_pattern"] = wide
            power = 0.5 if adapter.rslora else 1.0
            made["alpha_pattern"] = {
                name: _whole(adapter.alpha * (rank / adapter.rank) ** power) for name, rank in wide.items()
            }
        return made


def _whole(number: float) -> int | float:
    return int(number) if number == int(number) else number


def _shortened(names: list[str], layers: int | None, parts: int) -> list[str]:
    """The last `parts` parts of each name if all are in each of the `layers` layers, else the full names."""
    counts = Counter(".".join(name.split(".")[-parts:]) for name in names)
    everywhere = all(count == layers for short, count in counts.items() if short != "lm_head")
    return sorted(counts) if everywhere else sorted(names)
