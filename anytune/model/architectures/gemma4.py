"""Gemma 4: windowed heads of another width, embeddings of each layer, layers without keys, experts beside the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from anytune.errors import UserError
from anytune.model.architecture import (
    BESIDE,
    LAYER_TYPES,
    MODULES,
    PATTERN,
    SCALES,
    WINDOW,
    ExpertNames,
    Other,
    layer_types,
)
from anytune.model.ffn.beside import Beside
from anytune.model.ffn.dense_beside_experts import DenseBesideExperts
from anytune.model.ffn.gated import Gated
from anytune.model.mixers.shared_attention import BorrowedAttention, KeysAsValues, SharedAttention
from anytune.model.rope import Rope

from . import gemma3, qwen3moe

if TYPE_CHECKING:
    from anytune.model.config import Config

CAP, SHARED, OWN = "final_logit_softcapping", "attention.shared_kv_layers", "embedding_length_per_layer_input"
SIZE, TURNED, HEADS = "attention.key_length_swa", "rope.dimension_count_swa", "attention.head_count_kv"
VALUES, BASE, FED = "attention.value_length_swa", "rope.freq_base_swa", "feed_forward_length"
WHOLE = "attention.key_length", "attention.value_length", "rope.dimension_count"  # of the layers that see everything


def read(get: Callable, c: Config) -> dict[str, Any]:
    size, shared, heads = get(SIZE), get(SHARED, 0), get.each(HEADS, c.layers) or ()
    turned, first = get(TURNED, size), c.layers - shared
    wrong = not 0 < turned <= size <= 4096 or turned % 2 or get(VALUES, size) != size
    wrong |= any(not 0 < count <= c.heads or c.heads % count for count in heads) or not any(c.windows)
    # llama.cpp's shared layers read those of the last two that have keys
    if wrong or shared and (first < 2 or not c.windows[first - 2] or c.windows[first - 1]):
        raise UserError(f"{get.where}: its windowed heads or shared layers make no sense: the file is damaged")
    return {
        "attention_scale": 1.0,
        "logit_cap": float(get(CAP, 0.0, float)),
        "local": Rope(turned, c.local.base),
        "local_size": size,
        "layer_kv_heads": heads,
        "hiddens": get.each(FED, c.layers) or (),
        "shared": shared,
        "own": get(OWN, 0),
        "values": tuple(f"blk.{i}.attn_v.weight" in get.tensors for i in range(first)),
    }


def parts(c: Config, layer: int) -> tuple[type, ...]:
    mixer = BorrowedAttention if c.source(layer) is not None else SharedAttention if c.values[layer] else KeysAsValues
    ffn = Gated if c.router is None or layer < c.dense else DenseBesideExperts
    return (mixer, ffn, Beside) if c.own else (mixer, ffn)


def config(c: Config) -> dict[str, Any]:
    local, full = ((c.layer_kv_heads or (c.n_kv_heads,) * c.layers)[c.windows.index(kind)] for kind in (True, False))
    experts = {} if c.router is None else {"enable_moe_block": True, "top_k_experts": c.router.used}
    return (experts and qwen3moe.config(c) | experts) | {
        "head_dim": c.local_size,
        "global_head_dim": c.head_size,
        "num_key_value_heads": local,
        "num_global_key_value_heads": full,
        "attention_k_eq_v": not all(c.values),
        "num_kv_shared_layers": c.shared,
        "intermediate_size": min(c.hiddens or (c.hidden,)),
        "use_double_wide_mlp": len(set(c.hiddens)) > 1,
        "hidden_size_per_layer_input": c.own,
        "vocab_size_per_layer_input": c.vocabulary,
        "layer_types": layer_types(c),
        "sliding_window": c.window,
        CAP: c.logit_cap or None,
        "rope_parameters": {
            kind: {"rope_type": way, "rope_theta": base}
            for kind, way, base in zip(LAYER_TYPES, ("default", "proportional"), (c.local.base, c.rope_base))
        },
    }


def metadata(number: Callable, config: Mapping) -> dict[str, Any]:
    layers, hidden = number("num_hidden_layers", int), number("intermediate_size", int)
    local = number("num_key_value_heads", int)
    full = number("num_global_key_value_heads", int, local) if config.get("attention_k_eq_v") else local
    windows = [kind == LAYER_TYPES[0] for kind in config["layer_types"]]
    shared = int(config.get("num_kv_shared_layers") or 0)
    wide = layers - shared if config.get("use_double_wide_mlp") else layers  # the first layer of twice the width
    return {
        **dict.fromkeys(WHOLE, number("global_head_dim", int, 512)),
        **dict.fromkeys((SIZE, VALUES, TURNED), number("head_dim", int)),
        **({CAP: number(CAP, float)} if config.get(CAP) else {}),
        BASE: float(config["rope_parameters"][LAYER_TYPES[0]]["rope_theta"]),
        PATTERN: windows,
        SHARED: shared,
        OWN: int(config.get("hidden_size_per_layer_input") or 0),
        HEADS: [local if windowed else full for windowed in windows],
        FED: [hidden if layer < wide else 2 * hidden for layer in range(layers)],
    }


GEMMA4 = replace(
    gemma3.GEMMA3,
    name="gemma4",
    parts=parts,
    experts="beside",
    rope_factors=("rope_freqs",),
    needs_factors=True,
    lists=(HEADS, FED),
    still=True,
    read=read,
    keys=(WINDOW, PATTERN, CAP, SHARED, OWN, SIZE, VALUES, TURNED, BASE),
    zero=(),
    settings=(CAP,),
    biases=(),
    optional={"layer_output_scale.weight": (1,)},
    kind="gemma4_text",
    model_class="Gemma4ForCausalLM",
    other_classes=("Gemma4ForConditionalGeneration",),
    modules=MODULES | {"inp_gate": "per_layer_input_gate", "proj": "per_layer_projection"},
    norms=gemma3.NAMES | BESIDE | {"post_norm": "post_per_layer_input_norm"},
    unit_norms=(),
    routers={"ffn_gate_inp": "router.proj"},
    expert_names=ExpertNames("experts", each=(), fused=True),
    others=SCALES | {"layer_output_scale.weight": Other("layer_scalar")},
    config=config,
    metadata=metadata,
)
