"""An adapter as a peft folder: adapter_config.json, adapter_model.safetensors, chat_template.jinja.

The weights are the same; the names are Hugging Face's, and so is the order of rows and columns: what llama.cpp's
converter moves (the halves of llama's query and key heads, the value heads of qwen35) is undone in lora_B and lora_A.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from anytune.adapter.fit import check_fit, check_shapes, level
from anytune.adapter.settings import read_settings
from anytune.errors import UserError
from anytune.files import atomic_write, cannot_write
from anytune.gguf import GGUF, dequantize
from anytune.model import naming
from anytune.model.architecture import Architecture
from anytune.model.architectures import ARCHITECTURES

if TYPE_CHECKING:
    from anytune.adapter.adapter import Adapter

PREFIX = "base_model.model."
KEY = re.compile(
    r"base_model\.model\.(?:(?:model\.|language_model\.){1,3}layers\.(\d{1,5})\.([a-z_.]+)"
    r"|lm_head)\.lora_([AB])\.weight"
)
CONFIG, WEIGHTS, TEMPLATE = "adapter_config.json", "adapter_model.safetensors", "chat_template.jinja"
FILES = (CONFIG, WEIGHTS, TEMPLATE)
CONFIG_LIMIT = 4 << 20


def save(adapter: Adapter, folder: Path, gguf: GGUF | None) -> None:
    """Write the folder, weights first. UserError if peft has no name for something, or the disk is full."""
    from safetensors.numpy import save as to_bytes

    tensors, modules = {}, []
    for name, (a, b) in adapter.tensors.items():
        arch = naming.known(adapter.architecture)
        module, (rows, columns) = _module(arch, name), naming.orders(arch, name, gguf)
        a, b = naming.arranged(a, (None, columns)), naming.arranged(b, (rows, None))
        modules.append(module)
        tensors[f"{PREFIX}{module}.lora_A.weight"] = np.ascontiguousarray(a, np.float32)
        tensors[f"{PREFIX}{module}.lora_B.weight"] = np.ascontiguousarray(b, np.float32)
    layers = gguf.metadata.get(f"{adapter.architecture}.block_count") if gguf else None
    alpha = int(adapter.alpha) if adapter.alpha == int(adapter.alpha) else adapter.alpha
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": adapter.base_name or "",
        "r": adapter.rank,
        "lora_alpha": alpha,
        "use_rslora": adapter.rslora,
        "target_modules": _targets(modules, layers),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
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
            file.write(to_bytes(tensors, metadata={"anytune": json.dumps(own, sort_keys=True)}))
        if adapter.chat_template is not None:
            with atomic_write(folder / TEMPLATE, "w") as file:
                file.write(adapter.chat_template)
        with atomic_write(folder / CONFIG, "w") as file:
            json.dump(config, file, indent=2)
    except OSError as error:
        raise cannot_write(folder, error) from None


def load(folder: Path, gguf: GGUF | None) -> tuple[Any, ...]:
    """Read the folder -> an Adapter's fields, in order. gguf: the base, needed unless anytune wrote the folder."""
    settings = read_settings(_config(folder), folder / CONFIG)
    raw, own = _weights(folder / WEIGHTS)
    architecture = gguf.metadata.get("general.architecture") if gguf else own.get("architecture")
    if architecture not in ARCHITECTURES:
        raise UserError(f"{folder}: its architecture is unknown; give the base model too.")
    arch = ARCHITECTURES[architecture]
    parts = {module: part for part, module in arch.modules.items()}
    pairs: dict[str, dict[str, np.ndarray]] = {}
    modules: dict[str, str] = {}  # base tensor -> the module's full name
    for key, array in raw.items():
        found = KEY.fullmatch(key)
        module = found and found[2]
        if not found or module and module not in parts:
            raise UserError(f"{folder}: the weight {key!r} belongs to a module that cannot be adapted.")
        name = f"blk.{int(found[1])}.{parts[module]}.weight" if module else "output.weight"
        own_name = key.removeprefix(PREFIX).rpartition(".lora_")[0]
        if modules.setdefault(name, own_name) != own_name:
            raise UserError(f"{folder} has two modules that are {name} here: {modules[name]} and {own_name}.")
        pairs.setdefault(name, {})[found[3]] = array
    for name, pair in pairs.items():
        if len(pair) != 2:
            raise UserError(f"{folder}: {name} has only one of its two matrices; the folder is damaged.")
    shapes = {name: (pair["A"].shape, pair["B"].shape) for name, pair in pairs.items()}
    ranks = check_shapes(str(folder), shapes)
    settings.check(modules.values(), folder / CONFIG)
    scales = {}
    for name, module in modules.items():
        rank, scales[name] = settings.of(module)
        if rank != ranks[name]:
            raise UserError(
                f"{folder / CONFIG} gives {module} the rank {rank}, and its weights have {ranks[name]}: "
                "the folder is damaged."
            )
    if gguf is not None:
        check_fit(str(folder), architecture, shapes, gguf)
    tensors = {}
    for name, pair in pairs.items():
        rows, columns = naming.orders(arch, name, gguf)
        a, b = pair["A"], pair["B"]
        tensors[name] = naming.arranged(a, (None, columns), True), naming.arranged(b, (rows, None), True)
    template, text = folder / TEMPLATE, None
    if template.is_file() and template.stat().st_size < CONFIG_LIMIT:
        text = template.read_text("utf-8-sig", "replace")
    rank, alpha, rslora = settings.rank, settings.alpha, settings.rslora
    if set(scales.values()) != {settings.scale(rank, alpha)} or set(ranks.values()) != {rank}:
        (tensors, rank, alpha), rslora = level(str(folder), tensors, scales), False
    name, sha256 = own.get("base_name") or settings.base, own.get("base_sha256")
    return tensors, rank, alpha, rslora, architecture, name, sha256, text


def _module(arch: Architecture, name: str) -> str:
    """Hugging Face's module of a base tensor: "blk.0.attn_q.weight" -> "model.layers.0.self_attn.q_proj"."""
    found = naming.theirs(arch, name)
    part = name.split(".", 2)[2] if name.startswith("blk.") else name
    if found is None or part.removesuffix(".weight") not in (*arch.modules, "output"):
        raise UserError(f"peft's name for {name} is not known here; save the adapter as .gguf.")
    return found.removesuffix(".weight")


def _targets(modules: list[str], layers: int | None) -> list[str]:
    """Short names if each module is adapted in all the `layers` layers, else the full ones."""
    counts = Counter(module.rpartition(".")[2] for module in modules)
    everywhere = all(count == layers for short, count in counts.items() if short != "lm_head")
    return sorted(counts) if everywhere else sorted(modules)


def _config(folder: Path) -> Any:
    """What adapter_config.json says, unchecked."""
    path = folder / CONFIG
    try:
        if path.stat().st_size > CONFIG_LIMIT:
            raise UserError(f"{path} is too large for a configuration.")
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; a peft folder needs it.") from None
    except (ValueError, RecursionError):
        raise UserError(f"{path} is not valid JSON.") from None
    return found


def _weights(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """(name -> float32 array, what anytune noted about the adapter)."""
    from safetensors import SafetensorError, deserialize, safe_open

    try:
        parts = deserialize(path.read_bytes())
        with safe_open(path, "numpy") as file:
            note = (file.metadata() or {}).get("anytune", "{}")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; a peft folder needs it.") from None
    except SafetensorError as error:
        raise UserError(f"{path} is damaged: {error}.") from None
    arrays = {}
    for name, part in parts:
        if part["dtype"] not in ("F32", "F16", "BF16", "F64"):
            raise UserError(f"{path}: the weight {name!r} is stored as {part['dtype']}, which adapters do not use.")
        flat = np.frombuffer(part["data"], np.uint8)
        arrays[name] = dequantize(flat, part["dtype"]).reshape(part["shape"])
    try:
        own = json.loads(note)
    except (ValueError, RecursionError):
        own = {}
    own = own if isinstance(own, dict) else {}
    return arrays, {
        key: own.get(key) if isinstance(own.get(key), str) else None
        for key in ("architecture", "base_name", "base_sha256")
    }
