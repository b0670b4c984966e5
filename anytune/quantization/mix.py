"""Which format each tensor of a file gets: llama.cpp's rules for its names, so that a Q4_K_M is a Q4_K_M.

A file type gives most tensors its own format and those that matter more a finer one: the output matrix, attention's
values, the matrix down from the MLP in some layers. Rules are looked up by the tensor's part in the model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from anytune.gguf.blocks import BLOCKS
from anytune.gguf.header import TensorInfo
from anytune.quantization.filetypes import FileType

# Matrices that stay as they are: small, or read in another way than by a product.
KEPT = re.compile(
    r"_norm\.weight|ffn_gate_inp\.weight|ffn_gate_tid2eid|altup|laurel|per_layer_model_proj|ssm_conv1d|shortconv\.conv"
    r"|indexer\.[kq]_proj|time_mix_(first|[wvag][0-2]|decay_w[12]|lerp_fused)\.weight|attn_rel_b|\.position_embd"
    r"|sam\.(pos_embd|neck\.|net_)|\.rel_pos|\.patch_(embd|merger)|a\.rvq\.codebook|mm\.a\.code_embd"
    r"|^(position_embd|token_types)\.weight"
)
PARTS = (
    ("output", r"^output\.weight$"),
    ("embedding", r"^(per_layer_)?token_embd\.weight$"),
    ("values", r"attn_(qkv|kv_b|v)\.weight"),
    ("keys", r"attn_k\.weight"),
    ("out", r"attn_output\.weight"),
    ("down", r"ffn_down"),
)
# Rows whose length is not a multiple of the block get a format of blocks of 32.
SHORT_ROWS = {
    "Q1_0": "Q4_0",  # llama.cpp refuses these
    "Q2_0": "Q4_0",
    "Q2_K": "Q4_0",
    "Q3_K": "Q4_0",
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
    "IQ4_XS": "IQ4_NL",
    "TQ1_0": "Q4_0",
    "TQ2_0": "Q4_0",
}


@dataclass(frozen=True)
class Facts:
    """What the rules ask of a model. grouped: query heads per key head."""

    arch: str
    layers: int
    grouped: int
    experts: int
    tied: bool
    large: bool  # Llama 2 or 3 with 70B weights: 80 layers
    importance: bool

    @property
    def falcon(self) -> bool:
        return self.arch == "falcon"


def facts(metadata: Mapping, tensors: Mapping[str, TensorInfo], importance: bool) -> Facts:
    arch = str(metadata.get("general.architecture", ""))

    def number(key: str, default: int) -> int:
        value = metadata.get(f"{arch}.{key}", default)
        return int(max(value) if hasattr(value, "__len__") else value)

    heads = number("attention.head_count", 1)
    keys = number("attention.head_count_kv", heads)
    layers = number("block_count", 0)
    large = layers == 80 and (arch == "qwen2" or arch == "llama" and heads != keys)
    return Facts(
        arch,
        layers,
        heads // max(keys, 1),
        number("expert_count", 0),
        "output.weight" not in tensors,
        large,
        importance,
    )


def finer(layer: int, layers: int) -> bool:
    """The first and last eighth of the layers, and each third between."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def may_quantize(name: str, shape: tuple[int, ...]) -> bool:
    dimensions = len(shape[next((i for i, n in enumerate(shape) if n > 1), len(shape)) :])
    return dimensions >= 2 and name.endswith("weight") and KEPT.search(name) is None


def choose(tensors: Mapping[str, TensorInfo], kind: FileType, model: Facts) -> dict[str, str]:
    """Tensor name -> format, of the tensors that may be quantized."""
    names = sorted((name for name, t in tensors.items() if may_quantize(name, t.shape)), key=_place)
    seen = {"values": 0, "down": 0}
    total = sum(_part(name) == "values" for name in names)
    chosen = {}
    for name in names:
        part = _part(name)
        number = seen.get(part, 0)
        if part == "down" and model.experts > 1:
            number = _place(name)[0]
        if part in seen:
            seen[part] += 1
        chosen[name] = fitting(_rule(tensors[name], kind, model, part, number, total), tensors[name].shape[-1])
    return chosen


def fitting(block: str, row: int) -> str:
    """`block`, or its substitute if the row's length is not a multiple of its block size."""
    if row % BLOCKS[block].block_size:
        block = SHORT_ROWS.get(block, block)
    return "F16" if row % BLOCKS[block].block_size else block


def _place(name: str) -> tuple[int, str]:
    """The order in which layers are counted."""
    found = re.match(r"blk\.(\d+)\.", name)
    return (int(found[1]) if found else 0, name)


def _part(name: str) -> str:
    return next((part for part, pattern in PARTS if re.search(pattern, name)), "other")


def _rule(tensor: TensorInfo, kind: FileType, model: Facts, part: str, number: int, total: int) -> str:
    if kind.block in ("F32", "F16", "BF16"):
        return kind.block
    if part == "output" or part == "embedding" and model.tied:
        if kind.block in ("MXFP4", "Q8_0") or model.falcon or tensor.shape[-1] % BLOCKS[kind.block].block_size:
            return "Q8_0"
        return "Q6_K"
    if kind.name == "MXFP4_MOE":
        return "MXFP4" if len(tensor.shape) > 2 and tensor.shape[-3] > 1 else "Q8_0"
    if part == "embedding":
        return {"Q2_0": "Q4_K", "TQ1_0": "Q4_K", "TQ2_0": "Q4_K", "MXFP4": "Q8_0"}.get(kind.name, kind.block)
    rule = RULES.get(part)
    return rule(tensor.name, kind, model, number, total) if rule else kind.block


def _values(name: str, kind: FileType, model: Facts, number: int, total: int) -> str:
    few = model.grouped >= 4  # the fewer the heads, the less a finer format costs
    block = kind.block
    if kind.name == "Q2_K":
        block = "Q4_K" if few else "Q3_K"
    elif kind.name == "Q2_K_S" and few:
        block = "Q4_K"
    elif kind.name == "Q3_K_M":
        block = "Q5_K" if number < 2 else "Q4_K"
    elif kind.name == "Q3_K_L" or kind.name in ("IQ4_NL", "IQ4_XS") and few or kind.name == "Q4_K_S" and number < 4:
        block = "Q5_K"
    elif kind.name in ("Q4_K_M", "Q5_K_M") and finer(number, total):
        block = "Q6_K"
    if model.large and block in ("Q3_K", "Q4_K"):
        block = "Q5_K"
    return "Q8_0" if model.experts == 8 else block


def _keys(name: str, kind: FileType, model: Facts, number: int, total: int) -> str:
    return "Q8_0" if model.experts == 8 else kind.block


def _down(name: str, kind: FileType, model: Facts, layer: int, total: int) -> str:
    layers, early = model.layers, layer < model.layers // 8
    if kind.name == "Q2_K":
        return "Q3_K"
    if kind.name == "Q2_K_S" and early:
        return "Q4_K"
    if kind.name == "Q3_K_M":
        if layer < layers // 16:
            return "Q5_K"
        return "Q4_K" if not model.falcon or finer(layer, layers) else "Q3_K"
    if kind.name == "Q3_K_L":
        return "Q4_K" if model.falcon else "Q5_K"
    if kind.name == "Q4_K_M" and model.falcon:
        return "Q6_K" if layer < layers // 16 else "Q5_K" if finer(layer, layers) else "Q4_K"
    if kind.name in ("Q4_K_M", "Q5_K_M") and finer(layer, layers):
        return "Q6_K"
    if early and (
        kind.name in ("IQ4_NL", "IQ4_XS") and not model.importance or kind.name == "Q4_K_S" and not model.falcon
    ):
        return "Q5_K"
    if early and model.importance and kind.name in ("Q4_0", "Q5_0"):
        return {"Q4_0": "Q4_1", "Q5_0": "Q5_1"}[kind.name]
    return kind.block


def _out(name: str, kind: FileType, model: Facts, number: int, total: int) -> str:
    if model.falcon:
        return "Q4_K" if kind.name == "Q3_K_L" else kind.block
    if model.experts == 8:
        finer_kinds = ("Q2_K", "Q3_K_S", "Q3_K_M", "IQ4_NL", "IQ4_XS", "Q4_K_S", "Q4_K_M")
        return "Q5_K" if kind.name in finer_kinds else kind.block
    return {"Q2_K": "Q3_K", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K"}.get(kind.name, kind.block)


RULES: dict[str, Callable[[str, FileType, Facts, int, int], str]] = {
    "values": _values,
    "keys": _keys,
    "down": _down,
    "out": _out,
}
