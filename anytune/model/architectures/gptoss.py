"""gpt-oss: experts with biases and a clamped product, sinks in attention, a window in every second layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from anytune.model.architecture import NORMS, WINDOW, Architecture

if TYPE_CHECKING:
    from anytune.model.config import Config


def read(get: Callable, c: Config) -> dict:
    return {"local": None}  # the windowed layers turn as the others


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
)
