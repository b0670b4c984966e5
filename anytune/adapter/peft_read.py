"""What a peft folder holds, checked: its two files, and the pair that each of its weights belongs to."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from anytune.adapter import peft_experts
from anytune.adapter.peft_experts import DOWN, GATE_UP, Pair
from anytune.adapter.settings import Settings
from anytune.errors import UserError
from anytune.gguf import GGUF, dequantize
from anytune.model import naming
from anytune.model.architecture import Architecture

PREFIX = "base_model.model."
KEY = re.compile(
    r"base_model\.model\.(?:(?:model\.|language_model\.){1,3}layers\.(\d{1,5})\.([\w.]+)|lm_head)\.lora_([AB])\.weight"
)
EACH = re.compile(r"(?:mlp|block_sparse_moe|feed_forward)\.experts\.(\d{1,5})\.(w1|w2|w3|gate_proj|up_proj|down_proj)")
EACH_PARTS = {"w1": "gate", "w2": "down", "w3": "up"}
NEEDED = "a peft folder needs it"


class Found:
    """Collects a folder's weights, and gives the pairs that they are.

    gguf: the base, or None; its rows' order is not looked at.
    """

    def __init__(self, folder: Path, arch: Architecture, gguf: GGUF | None, settings: Settings):
        self.folder, self.arch, self.gguf, self.settings = folder, arch, gguf, settings
        self.parts = {module: part for part, module in (*arch.modules.items(), *arch.routers.items())}
        self.sides: dict[str, dict[str, np.ndarray]] = defaultdict(dict)  # by tensor, or by what it is stored under
        self.names: dict[str, str] = {}  # the same -> the module's full name in the folder
        self.made: dict[str, Pair] = {}
        self.scales: dict[str, float] = {}
        self.parameters: set[str] = set()  # full names of those that the folder has weights of

    def add(self, key: str, array: np.ndarray) -> None:
        """One weight of the file. UserError for one that cannot be adapted, and for a second one of a pair."""
        found = KEY.fullmatch(key)
        place = found and self._place(*found.groups()[:2])
        if not place:
            raise UserError(f"{self.folder}: the weight {key!r} belongs to a module that cannot be adapted.")
        own = key.removeprefix(PREFIX).rpartition(".lora_")[0]
        if self.names.setdefault(place, own) != own:
            raise UserError(f"{self.folder} has two modules that are {place} here: {self.names[place]} and {own}.")
        self.sides[place][found[3]] = array

    def _place(self, layer: str | None, module: str | None) -> str | None:
        """The tensor that it adapts; of experts a name of its own: blk.N.experts, .base_layer or .number.part."""
        if layer is None:
            return "output.weight"
        start = f"blk.{int(layer)}."
        if module in self.parts:
            return f"{start}{self.parts[module]}.weight"
        if not self.arch.experts:
            return None
        if each := EACH.fullmatch(module):
            part = EACH_PARTS.get(each[2]) or each[2].removesuffix("_proj")
            return f"{start}experts.{int(each[1])}.{part}"
        rest = module.removeprefix(self.arch.expert_names.module)
        return f"{start}experts{rest}" if rest in ("", ".base_layer") and rest != module else None

    def pairs(self) -> tuple[dict[str, Pair], dict[str, float]]:
        """(pairs, scales) by tensor. UserError where weights and settings are none."""
        for place, sides in self.sides.items():
            if len(sides) != 2:
                raise UserError(f"{self.folder}: {place} has only one of its two matrices; the folder is damaged.")
        each: dict[str, dict[int, Pair]] = defaultdict(dict)
        for place, sides in self.sides.items():
            a, b = sides["A"], sides["B"]
            _, layer, kind, *rest = (*place.split("."), "", "")
            if kind != "experts":
                self._check(place, a.shape[0] if a.ndim else 0)
                self.made[place] = a, b
            elif rest[0].isdecimal():
                self._check(place, a.shape[0] if a.ndim else 0)
                tensor = f"blk.{layer}.{naming.expert(rest[1])}.weight"
                each[tensor][int(rest[0])] = a, b
                if self.scales.setdefault(tensor, self.scales[place]) != self.scales.pop(place):
                    raise UserError(f"{self.folder}: the experts of {tensor} differ in their scale.")
            else:
                self._parameter(int(layer), place, a, b)
        for tensor, parts in each.items():
            self.made[tensor] = self._together(tensor, parts)
        self.settings.check_parameters(self.parameters, self.folder / "adapter_config.json")
        return self.made, self.scales

    def _check(self, place: str, rank: int) -> None:
        module = self.names[place]
        self.settings.check([module], self.folder / "adapter_config.json")
        self.parameters.add(f"{module}.weight")
        told, self.scales[place] = self.settings.of(module)
        if told != rank:
            raise UserError(
                f"{self.folder / 'adapter_config.json'} gives {module} the rank {told}, and its weights have {rank}: "
                "the folder is damaged."
            )

    def _parameter(self, layer: int, place: str, a: np.ndarray, b: np.ndarray) -> None:
        """Pairs of all experts of a layer."""
        outer = place.removesuffix(".base_layer")
        module = self.names[place].removesuffix(".base_layer")
        chosen = [name for name in (GATE_UP, DOWN) if self.settings.adapts(f"{module}.{name}")]
        if outer not in self.sides or len(chosen) != 1 + (f"{outer}.base_layer" in self.sides):
            raise UserError(
                f"{self.folder}: target_parameters do not choose the parameters of {module} that it has weights of: "
                "one of the two is wrong."
            )
        parameter = chosen[0] if place != outer or len(chosen) == 1 else DOWN
        self.parameters.add(f"{module}.{parameter}")
        rank, scale = self.settings.of(f"{module}.{parameter}")
        if a.ndim != 2 or b.ndim != 2 or a.shape[0] % rank or not a.size or a.shape[0] != b.shape[1]:
            raise UserError(
                f"{self.folder}: {place} has {a.shape} and {b.shape}, no matrices of experts of rank {rank}."
            )
        pair, turned = peft_experts.stacked(a, b, a.shape[0] // rank), self.arch.expert_names.turned
        if not turned and self._swapped(layer, parameter, a, b):
            pair = pair[1].swapaxes(1, 2), pair[0].swapaxes(1, 2)
        if parameter == DOWN:
            parts = {"down": pair}
        else:
            parts = {"gate_up": pair} if self._whole(layer) else peft_experts.split(pair, turned)
        for part, one in parts.items():
            tensor = f"blk.{layer}.{naming.expert(part)}.weight"
            if tensor in self.made or tensor in self.scales:
                raise UserError(f"{self.folder} has {tensor} twice.")
            self.made[tensor], self.scales[tensor] = one, scale

    def _whole(self, layer: int) -> bool:
        """Whether gate and up are one tensor of the base."""
        if self.gguf is None:
            return self.arch.expert_names.fused
        return f"blk.{layer}.{naming.expert('gate_up')}.weight" in self.gguf.tensors

    def _swapped(self, layer: int, parameter: str, a: np.ndarray, b: np.ndarray) -> bool:
        part = "down" if parameter == DOWN else "gate_up" if self._whole(layer) else "gate"
        info = self.gguf and self.gguf.tensors.get(f"blk.{layer}.{naming.expert(part)}.weight")
        shape = tuple(info.shape[1:]) if info else (b.shape[0], b.shape[0])
        out = shape[0] * (2 if info and part == "gate" else 1)
        return peft_experts.swapped(a, b, (out, shape[1]), self.settings.version)

    def _together(self, tensor: str, parts: dict[int, Pair]) -> Pair:
        """Pairs of single experts as one; zeros for experts that have none."""
        info = self.gguf and self.gguf.tensors.get(tensor)
        count = info.shape[0] if info and len(info.shape) == 3 else max(parts) + 1
        (a, b), *_ = parts.values()
        if max(parts) >= count or any((x.shape, y.shape) != (a.shape, b.shape) for x, y in parts.values()):
            raise UserError(f"{self.folder}: the experts of {tensor} differ in shape, or are more than the model has.")
        if not info and len(parts) != count:
            raise UserError(f"{self.folder}: {tensor} lacks experts; give the base model too.")
        made = np.zeros((count, *a.shape), np.float32), np.zeros((count, *b.shape), np.float32)
        for number, pair in parts.items():
            made[0][number], made[1][number] = pair
        return made


def read_weights(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """(name -> float32 array, what anytune noted about the adapter)."""
    from safetensors import SafetensorError, deserialize, safe_open

    try:
        parts = deserialize(path.read_bytes())
        with safe_open(path, "numpy") as file:
            note = (file.metadata() or {}).get("anytune", "{}")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; {NEEDED}.") from None
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
