"""gpt-oss: experts with biases and a clamped product, sinks in attention, a window in every second layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from anytune.model.architecture import NORMS, WINDOW, Architecture, ExpertNames, Other, layer_types

if TYPE_CHECKING:
    from anytune.model.config import Config


def read(get: Callable, c: Config) -> dict:
    return {"local": None}  # the windowed layers turn as the others


def config(c: Config) -> dict:
    return {
        "rope_parameters": {"rope_type": "default", "rope_theta": c.rope_base, "truncate": True},
        "intermediate_size": c.expert_hidden,
        "num_local_experts": c.router.experts,
        "num_experts_per_tok": c.router.used,
        "sliding_window": c.window,
        "layer_types": layer_types(c),
        "swiglu_limit": 7.0,
    }


GPTOSS = Architecture(
    "gpt-oss",
    neox=True,
    activation="clamped",
    experts="all",
    gating="chosen",
    normalized=False,
    sinks=True,
    ffn_norm="post_attention_norm",
    window_period=2,
    biases=(
        *("attn_q", "attn_k", "attn_v", "attn_output"),
        *("ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"),
    ),
    read=read,
    keys=(WINDOW, "attention.sliding_window_pattern"),
    kind="gpt_oss",
    model_class="GptOssForCausalLM",
    norms={name: module for name, module in NORMS.items() if name != "ffn_norm"}
    | {"post_attention_norm": "post_attention_layernorm"},
    routers={"ffn_gate_inp": "mlp.router"},
    expert_names=ExpertNames(each=(), turned=True),
    others={"attn_sinks.weight": Other("self_attn.sinks")},
    config=config,
)
