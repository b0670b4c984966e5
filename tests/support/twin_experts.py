"""Mixtures of experts of a GGUF as transformers has them: gate and up in one tensor, and pairs of experts as changes of
such tensors, for which peft has no name."""

from __future__ import annotations

import re
from collections import defaultdict

import numpy as np

from tests.support.require import need

NAMES = {  # what is not an expert's, of whatever architecture
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}
PART = re.compile(r"blk\.(\d+)\.ffn_(gate|up|gate_up|down)_exps\.(weight|bias)")


def place(arch: str, layer: str) -> str:
    """The module of a layer's experts."""
    own = {"gemma4": "experts", "lfm2moe": "feed_forward.experts"}
    return f"model.layers.{layer}.{own.get(arch, 'mlp.experts')}"


def is_expert(tensor: str) -> bool:
    return PART.fullmatch(tensor) is not None


def theirs(arch: str, parts: dict):
    """{"gate", "up" (or both: "gate_up"), "down": torch [experts, out, in] or biases [experts, out]} -> {name: tensor},
    of what is there."""
    torch = need("torch")
    found, swapped = {}, arch == "gpt-oss"
    if "gate" in parts:
        both = [parts["gate"], parts["up"]]
        found["gate_up_proj"] = torch.stack(both, 2).flatten(1, 2) if swapped else torch.cat(both, 1)
    if "gate_up" in parts:
        found["gate_up_proj"] = parts["gate_up"]
    if "down" in parts:
        found["down_proj"] = parts["down"]
    return {name: x.transpose(1, 2) if swapped and x.ndim == 3 else x for name, x in found.items()}


def ours(arch: str, found: dict) -> dict:
    """The inverse of theirs(), of tensors or biases of all of a layer's experts."""
    swapped = arch == "gpt-oss"
    found = {name: x.transpose(1, 2) if swapped and x.ndim == 3 else x for name, x in found.items()}
    both = found["gate_up_proj"]
    gate, up = (both[:, 0::2], both[:, 1::2]) if swapped else both.chunk(2, 1)
    return {"gate": gate, "up": up, "gate_up": both, "down": found["down_proj"]}


def state(arch: str, weights: dict[str, np.ndarray]) -> dict:
    """The parameters of the tensors of experts among `weights`."""
    torch, layers = need("torch"), defaultdict(dict)
    for name, w in weights.items():
        if found := PART.fullmatch(name):
            layers[found[1], found[3]][found[2]] = torch.from_numpy(w)
    made = {}
    for (layer, kind), parts in layers.items():
        end = "_bias" if kind == "bias" else ""
        made |= {f"{place(arch, layer)}.{name}{end}": x.contiguous() for name, x in theirs(arch, parts).items()}
    return made


def adapt_linears(model, names: dict, scale: float) -> dict:
    """The same of plain linears, {tensor: (module, a, b)}, whose names peft takes for those of experts."""
    torch, found = need("torch"), {}

    class Change(torch.nn.Module):
        def __init__(self, pair: tuple):
            super().__init__()
            self.a, self.b = pair

        def forward(self, w):
            return w + scale * (self.b @ self.a)

    for tensor, (module, *pair) in names.items():
        found[tensor] = tuple(torch.nn.Parameter(torch.from_numpy(np.array(x, np.float32))) for x in pair)
        change = Change(found[tensor])
        torch.nn.utils.parametrize.register_parametrization(model.get_submodule(module), "weight", change)
    return found


def behind(tensor: str, weights: dict[str, np.ndarray]) -> np.ndarray | float:
    """What llama.cpp multiplies an expert's product by before it adds what its pair gives: [experts, 1, 1], or 1."""
    return weights[name].reshape(-1, 1, 1) if (name := tensor.replace("weight", "scale")) in weights else 1.0


def adapt(model, arch: str, tensors: dict, scale: float, weights: dict[str, np.ndarray]) -> dict:
    """Change a transformers model's experts by pairs {tensor: (a, b)} -> {tensor: (a, b) as torch's parameters}."""
    torch = need("torch")
    tensors = {name: (a, b / behind(name, weights)) for name, (a, b) in tensors.items()}

    class Change(torch.nn.Module):
        def __init__(self, pairs: dict, name: str):
            super().__init__()
            self.pairs, self.name = torch.nn.ParameterDict(pairs), name

        def forward(self, w):
            parts = {}
            for part in {name.rpartition("_")[0] for name in self.pairs}:
                a, b = self.pairs[f"{part}_a"], self.pairs[f"{part}_b"]
                parts[part] = scale * (b @ a)
            return w + theirs(arch, parts)[self.name]

    found, layers = {}, defaultdict(dict)
    for tensor, (a, b) in tensors.items():
        layer, part, _ = PART.fullmatch(tensor).groups()
        found[tensor] = tuple(torch.nn.Parameter(torch.from_numpy(np.array(x, np.float32))) for x in (a, b))
        layers[layer] |= dict(zip((f"{part}_a", f"{part}_b"), found[tensor]))
    for layer, pairs in layers.items():
        module = model.get_submodule(place(arch, layer))
        for name in ("gate_up_proj", "down_proj"):
            own = {key: p for key, p in pairs.items() if key.startswith("down") == (name == "down_proj")}
            if own:
                torch.nn.utils.parametrize.register_parametrization(module, name, Change(own, name))
    return found
