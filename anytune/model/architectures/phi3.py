"""Phi 3, 3.5 and 4: Llama's layers with fused matrices, and angles with other divisors for long contexts.

llama.cpp takes the long ones where its context is longer than the original one, for all positions; so does -c here.
Its windows are switched off there, and so they are here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from anytune.model.architecture import MODULES, Architecture
from anytune.model.ffn.fused import FusedGated
from anytune.model.mixers.fused_attention import FusedAttention

if TYPE_CHECKING:
    from anytune.model.config import Config

ORIGINAL = "original_max_position_embeddings"


def config(c: Config) -> dict:
    return {
        ORIGINAL: c.scaling.original_context,
        "partial_rotary_factor": c.rope_size / c.head_size,
        "sliding_window": None,
    }


def metadata(number: Callable, config: Mapping) -> dict:
    head = config["hidden_size"] // config["num_attention_heads"]
    return {
        "rope.dimension_count": int(head * (config.get("partial_rotary_factor") or 1.0)),
        "rope.scaling.original_context_length": number(ORIGINAL, int, config["max_position_embeddings"]),
    }


PHI3 = Architecture(
    "phi3",
    neox=True,
    parts=lambda c, layer: (FusedAttention, FusedGated),
    rope_factors=("rope_factors_short", "rope_factors_long"),
    biases=(),
    kind="phi3",
    model_class="Phi3ForCausalLM",
    modules={"attn_output": MODULES["attn_output"], "ffn_down": MODULES["ffn_down"]}
    | {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"},
    attention_bias=False,
    partial_rope=True,
    config=config,
    metadata=metadata,
)
