"""Gemma 3: norms around each part, five windowed layers to each that sees everything, scaled embeddings."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from anytune.model.architecture import NORMS, PATTERN, WINDOW, Architecture, layer_types

if TYPE_CHECKING:
    from anytune.model.config import Config


NAMES = NORMS | {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}


def read(get: Callable, c: Config) -> dict:
    # the 27B model scales by its width per head
    return {"attention_scale": 1.0 / math.sqrt(c.width / c.heads)} if c.layers == 62 else {}


def config(c: Config) -> dict:
    return {
        "query_pre_attn_scalar": round(c.attention_scale**-2),
        "sliding_window": c.window,
        "sliding_window_pattern": c.window_period or 1,
        "rope_local_base_freq": c.local.base if c.local else c.arch.local_base,
        "layer_types": layer_types(c),
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
    }


GEMMA3 = Architecture(
    "gemma3",
    neox=True,
    activation="gelu",
    scaled_embedding=True,
    head_norms=True,
    post_norms=True,
    window_period=6,
    local_base=10_000.0,
    read=read,
    keys=(WINDOW, PATTERN, "rope.freq_base_swa"),
    zero=("final_logit_softcapping",),
    kind="gemma3_text",
    model_class="Gemma3ForCausalLM",
    other_classes=("Gemma3ForConditionalGeneration",),
    norms=NAMES,
    unit_norms=("*",),
    activation_key="hidden_activation",
    config=config,
)
