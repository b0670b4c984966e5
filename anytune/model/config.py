"""What a GGUF says of its model, read into one record; the architectures are a table."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from anytune.engine.base import DeltaHeads, LatentHeads, Router
from anytune.errors import UserError

from .architecture import PATTERN, WINDOW, Architecture
from .architectures import ARCHITECTURES
from .keys import check_keys
from .reader import Reader
from .rope import STILL, Rope, RopeScaling


@dataclass(frozen=True)
class Config:
    """Sizes and constants of one model."""

    architecture: str
    layers: int
    width: int  # d, the residual stream
    heads: int
    n_kv_heads: int
    head_size: int
    hidden: int  # of the MLP
    vocabulary: int
    context: int  # trained context, tokens
    eps: float
    rope_base: float
    rope_size: int  # dimensions of a head that rotate
    scaling: RopeScaling
    window: int  # 0: none
    window_period: int  # every n-th layer sees everything, the others the window; 0: all see the window
    local: Rope | None  # how the windowed layers turn; None: as the others
    attention_scale: float
    tied: bool
    embedding_scale: float = 1.0  # of the embeddings, on their way into the residual stream
    residual_scale: float = 1.0  # of what parts add to it, where the file says so: granite.py
    logit_scale: float = 1.0
    logit_cap: float = 0.0  # logits z become cap * tanh(z / cap); 0: uncapped
    score_cap: float = 0.0  # the same of attention's scores
    heat: float = 0.0  # of queries beyond the original context: see Rope
    delta: DeltaHeads | None = None  # of the layers that are a gated delta net
    latent: LatentHeads | None = None  # of layers whose keys and values are made of a latent
    split_latent: bool = False  # what makes keys and what makes values are two tensors
    q_rank: int = 0  # of the latent that queries are made of; 0: of the residual stream
    router: Router | None = None  # of the layers that have experts
    expert_hidden: int = 0  # of an expert
    fused_experts: bool = False  # gate and up are one matrix
    shared_hidden: int = 0  # of the expert that all tokens go to; 0: there is none
    choice_bias: bool = False  # a bias for the choice of experts alone
    dense: int = 0  # layers before the first with experts
    behind: int = 0  # blocks behind the layers, which only speculative decoding uses
    kernel: int = 0  # tokens that a convolution sees
    local_size: int = 0  # width of a head of the windowed layers; 0: the others'
    layer_kv_heads: tuple[int, ...] = ()  # n_kv_heads of each layer, where they differ
    hiddens: tuple[int, ...] = ()  # of each layer's MLP, where they differ
    shared: int = 0  # layers at the end that read the keys and values of layers before them
    values: tuple[bool, ...] = ()  # which layers have values of their own, where not all have
    own: int = 0  # width of the embedding that each layer has of its own
    windows: tuple[bool, ...] = ()  # which layers see the window only, where the file lists them
    recurrent: tuple[bool, ...] = ()  # which layers have a state in place of keys and values; (): none

    @property
    def arch(self) -> Architecture:
        return ARCHITECTURES[self.architecture]

    def ignores(self, name: str) -> bool:
        """Whether a tensor is of a block behind the layers, or of keys and values that another layer's stand for."""
        block, number, part, *_ = (*name.split("."), "", "")
        if block != "blk" or not number.isdigit():
            return False
        shared = part in ("attn_k", "attn_v", "attn_k_norm") and int(number) >= self.layers - self.shared
        return self.layers <= int(number) < self.layers + self.behind or shared

    def products(self) -> list[list[str]]:
        """The matrices that share a product, for all products in the order in which they run."""
        return [
            [f"blk.{i}.{name}.weight" for name in names]
            for i in range(self.layers)
            for part in self.arch.parts(self, i)
            for names in part.linears(self)
        ]

    def rope(self, layer: int) -> Rope:
        """How this layer turns its queries and keys."""
        if self.arch.nope_period and (layer + 1) % self.arch.nope_period == 0:
            return Rope(self.rope_size, 0.0)
        if self.local is not None and self.windowed(layer):
            return self.local
        return Rope(self.rope_size, self.rope_base, self.scaling, True, self.heat, self.scaling.original_context)

    def size(self, layer: int) -> int:
        """The width of a head of this layer."""
        return self.local_size if self.local_size and self.windowed(layer) else self.head_size

    def source(self, layer: int) -> int | None:
        """The layer whose keys and values this one reads; None: its own."""
        first = self.layers - self.shared
        return None if layer < first else first - 2 if self.windowed(layer) else first - 1

    @property
    def output_norm(self) -> str:
        return f"{self.arch.output_norm}.weight"

    def looked_up(self, name: str) -> bool:
        """Whether a matrix is a table of which only a few rows are read at a time."""
        return name in LOOKUPS or name == EMBEDDING and not self.tied

    @property
    def ropes(self) -> list[Rope]:
        """Those of all layers, each once."""
        still = [STILL] if self.arch.still else []
        return list(dict.fromkeys([*map(self.rope, range(self.layers)), *still]))

    def windowed(self, layer: int) -> bool:
        """Whether this layer sees only the window."""
        if self.windows:
            return self.windows[layer]
        return bool(self.window and (not self.window_period or (layer + 1) % self.window_period))


CHOICE_BIAS = "exp_probs_b.bias"
EMBEDDING, LOOKUPS = "token_embd.weight", ("per_layer_token_embd.weight",)
GATING = {1: "softmax", 2: "sigmoid", 3: "chosen"}  # llama.cpp's numbers of them


def read_config(gguf) -> Config:
    """The Config of an open GGUF. Raises UserError for another architecture or senseless sizes."""
    meta, where, arch = gguf.metadata, gguf.path.name, _architecture(gguf)
    name, get = arch.name, Reader(gguf, arch.name)
    width, heads = get("embedding_length"), get("attention.head_count")
    n_kv_heads = get("attention.head_count_kv", heads)
    size = get("attention.key_length", width // heads)
    if not 0 < n_kv_heads <= heads or heads % n_kv_heads or not 0 < size <= 4096:
        raise UserError(
            f"{where}: {heads} heads over {n_kv_heads} key heads of size {size} are invalid: the file is damaged"
        )
    if get("attention.value_length", size) != size and not arch.latent:
        raise UserError(f"{where} has values of another width than its keys, which anytune does not support")
    if "token_embd.weight" not in gguf.tensors:
        raise UserError(f"{where} has no tensor token_embd.weight: it is not a complete model file")
    rope_size = get("rope.dimension_count", size)
    if not 0 < rope_size <= size or rope_size % 2:
        raise UserError(f"{where}: {name}.rope.dimension_count = {rope_size} is invalid for heads of {size}")
    if name == "llama" and rope_size != size:  # llama.cpp knows no partial rotation of this architecture
        raise UserError(
            f"{where}: llama.rope.dimension_count is {rope_size} and heads have {size}: llama.cpp would "
            "not load this file"
        )
    vocabulary = gguf.tensors["token_embd.weight"].shape[0]
    tokens = meta.get("tokenizer.ggml.tokens")
    if tokens is not None and len(tokens) > vocabulary:
        raise UserError(
            f"{where} has {len(tokens):,} tokens and {vocabulary:,} rows in token_embd.weight: the "
            "tokens beyond them cannot be computed, the file is damaged"
        )
    layers = get("block_count")
    window = get(WINDOW, arch.window) if arch.window_period else 0
    kind = meta.get(f"{name}.rope.scaling.type", "linear")
    long = isinstance(kind, str) and kind == "longrope" and len(arch.rope_factors) > 1  # it is its factors that scale
    scaling = _scaling(get, "linear" if long else kind, where)
    config = Config(
        architecture=name,
        layers=layers,
        width=width,
        heads=heads,
        n_kv_heads=n_kv_heads,
        head_size=size,
        hidden=get("feed_forward_length", 1 if arch.experts else None),
        vocabulary=vocabulary,
        context=get("context_length"),
        eps=float(get("attention.layer_norm_rms_epsilon", kind=float)),
        rope_base=float(get("rope.freq_base", 10_000.0, float)),
        rope_size=rope_size,
        scaling=scaling,
        window=window,
        window_period=arch.window_period if window else 0,
        local=None,
        attention_scale=1.0 / math.sqrt(size),
        tied="output.weight" not in gguf.tensors,
        embedding_scale=float(np.float32(np.sqrt(width))) if arch.scaled_embedding else 1.0,
    )
    if window:
        config = replace(config, **_windows(get, config))
    if arch.experts:
        config = replace(config, **read_experts(get, config, where))
    if arch.read is not None:
        config = replace(config, **arch.read(get, config))
    check_keys(gguf, config)
    return config


def _architecture(gguf) -> Architecture:
    """That of an open GGUF. Raises UserError for another one, and for what is not a model."""
    where, name = gguf.path.name, gguf.metadata.get("general.architecture")
    kind = gguf.metadata.get("general.type", "model")
    if kind == "adapter":
        raise UserError(f"{where} is an adapter, not a model: give it as --lora and its base model as -m")
    if name not in ARCHITECTURES and kind != "model":
        raise UserError(f"{where} is not a model, but {kind[:40]}: name the model's GGUF file.")
    if name not in ARCHITECTURES:
        raise UserError(
            f"{where} has architecture {name!r}, which anytune cannot run yet; it supports {', '.join(ARCHITECTURES)}"
        )
    return ARCHITECTURES[name]


def _windows(get: Reader, c: Config) -> dict[str, Any]:
    """Which layers see a window, and how they turn. Patterns are numbers, or a list with a value for each layer."""
    listed = isinstance(get.meta.get(f"{get.name}.{PATTERN}"), list | np.ndarray)
    base = float(get("rope.freq_base_swa", c.arch.local_base or c.rope_base, float))
    return {
        "windows": (get.each(PATTERN, c.layers, bool) or ()) if listed else (),
        "window_period": 0 if listed else get(PATTERN, c.arch.window_period),
        "local": Rope(c.rope_size, base, RopeScaling(attention_factor=c.scaling.attention_factor)),
    }


def read_experts(get: Reader, c: Config, where: str) -> dict[str, Any]:
    """Fields of the Config of a mixture of experts; {} for a file without any, where the architecture allows it."""
    count, used = get("expert_count", None if c.arch.experts == "all" else 0), get("expert_used_count", 0)
    if not count and not used and c.arch.experts != "all":
        return {}
    kind = GATING.get(get("expert_gating_func", 0), None) if get("expert_gating_func", 0) else c.arch.gating
    dense = get("leading_dense_block_count", 0)
    if not 0 < used <= count or kind is None or dense > c.layers:
        raise UserError(f"{where}: expert_used_count {used} of expert_count {count} is invalid: the file is damaged")
    normalized = get("expert_weights_norm", c.arch.normalized, bool)
    scale = float(get("expert_weights_scale", 0.0, float)) or 1.0
    own = c.arch.experts != "some"  # there llama.cpp gives experts the width of the dense layers
    hidden = (get("expert_feed_forward_length", 0) or c.hidden // used) if own else c.hidden
    groups = max(get("expert_group_count", 0), 1)
    near = get("expert_group_used_count", groups) or groups
    if groups > 1 and (count % groups or count < 2 * groups or near > groups or used > near * (count // groups)):
        raise UserError(f"{where}: {near} of {groups} groups of {count} experts are invalid: the file is damaged")
    shared = get("expert_shared_feed_forward_length", 0) or get("expert_shared_count", 0) * hidden
    return {
        "router": Router(count, used, kind, normalized, scale, groups, near),
        "expert_hidden": hidden,
        "fused_experts": f"blk.{dense}.ffn_gate_up_exps.weight" in get.tensors,
        "shared_hidden": shared,
        "dense": dense,
        "choice_bias": c.arch.choice_bias == "all"
        or c.arch.choice_bias == "some"
        and f"blk.{dense}.{CHOICE_BIAS}" in get.tensors,
    }


def _scaling(get, kind: object, where: str) -> RopeScaling:
    linear = float(get("rope.scale_linear", 0.0, float))  # what old files call it
    factor = float(get("rope.scaling.factor", linear, float)) or 1.0
    if not isinstance(kind, str) or kind not in ("none", "linear", "yarn"):
        raise UserError(
            f"{where}: rope scaling of type {kind!r:.40} is not supported (none, linear, yarn, and "
            "Llama 3's table of factors are)"
        )
    return RopeScaling(
        "none" if factor == 1 else kind,
        factor,
        get("rope.scaling.original_context_length", get("context_length")),
        float(get("rope.scaling.attn_factor", 1.0, float)),
    )
