"""Pairs of experts in peft's form: LoRA on the two parameters that hold a layer's experts (target_parameters).

Of a parameter peft stores two matrices: A [experts · rank, in], the rows of an expert together, and B
[out, rank · experts], the columns of a rank together. Since gate and up are one parameter, their two pairs become one
of both ranks, whose B is zero where a rank is the other's. The parameter that the model names first is wrapped first,
so that its names have `.base_layer` in them if the other is adapted too.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping

import numpy as np

from anytune.model import naming
from anytune.model.architecture import Architecture

Pair = tuple[np.ndarray, np.ndarray]  # a [experts, rank, in], b [experts, out, rank]
GATE_UP, DOWN = "gate_up_proj", "down_proj"
TENSOR = re.compile(r"blk\.(\d{1,5})\.ffn_(gate|up|gate_up|down)_exps\.weight")
SWAPPED_UNTIL = (0, 19, 1)  # peft took the last two axes for each other before


def flat(pair: Pair) -> Pair:
    """(A, B) as peft stores them."""
    a, b = pair
    return a.reshape(-1, a.shape[-1]), b.transpose(1, 2, 0).reshape(b.shape[1], -1)


def stacked(a: np.ndarray, b: np.ndarray, experts: int) -> Pair:
    """The inverse of flat()."""
    rank = a.shape[0] // experts
    return a.reshape(experts, rank, -1), b.reshape(b.shape[0], rank, experts).transpose(2, 0, 1)


def fused(gate: Pair | None, up: Pair | None, turned: bool) -> Pair:
    """Gate and up, of which one may be missing, as one pair; turned: their rows by turns."""
    (a, b) = gate or up
    zero = np.zeros_like(b)
    halves = (b, zero) if up is None else (zero, b)
    if gate and up:
        a = np.concatenate([gate[0], up[0]], 1)
        halves = (
            np.concatenate([gate[1], np.zeros_like(up[1])], 2),
            np.concatenate([np.zeros_like(gate[1]), up[1]], 2),
        )
    return a, np.stack(halves, 2).reshape(len(b), -1, a.shape[1]) if turned else np.concatenate(halves, 1)


def split(pair: Pair, turned: bool) -> dict[str, Pair]:
    """The inverse of fused(): what gate and up have of a pair, without ranks that only the other uses."""
    a, b = pair
    half = b.shape[1] // 2
    gate, up = (b[:, 0::2], b[:, 1::2]) if turned else (b[:, :half], b[:, half:])
    rank = b.shape[2] // 2
    if b.shape[2] == 2 * rank and not gate[..., rank:].any() and not up[..., :rank].any():
        found = {"gate": (a[:, :rank], gate[..., :rank]), "up": (a[:, rank:], up[..., rank:])}
    else:
        found = {"gate": (a, gate), "up": (a, up)}
    used = {part: one for part, one in found.items() if one[1].any()}
    return used or found


def parameters(arch: Architecture, tensors: Mapping[str, Pair]) -> Iterator[tuple[str, str, Pair]]:
    """(the module that peft stores it under, the parameter's full name, pair) of all pairs of experts in `tensors`."""
    layers: dict[int, dict[str, Pair]] = defaultdict(dict)
    for name, pair in tensors.items():
        if found := TENSOR.fullmatch(name):
            layers[int(found[1])][found[2]] = pair
    for layer, parts in layers.items():
        module = naming.LAYER.format(layer, arch.expert_names.module)
        gate, up, down = (parts.get(part) for part in naming.PARTS)
        whole = parts.get("gate_up")
        if whole or gate or up:
            place = f"{module}.base_layer" if down else module
            yield place, f"{module}.{GATE_UP}", whole or fused(gate, up, arch.expert_names.turned)
        if down:
            yield module, f"{module}.{DOWN}", down


def swapped(a: np.ndarray, b: np.ndarray, shape: tuple[int, int], version: object) -> bool:
    """Whether A and B are those of a parameter whose inputs peft took for its outputs, as it did before 0.19.1.

    shape: (out, in) of an expert's matrix. version: peft's, if the folder says it, for square matrices.
    """
    if shape[0] != shape[1]:
        return (b.shape[0], a.shape[1]) == shape[::-1]
    parts = re.findall(r"\d+", version)[:3] if isinstance(version, str) else []
    return bool(parts) and tuple(map(int, parts)) < SWAPPED_UNTIL
