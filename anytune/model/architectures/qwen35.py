"""Qwen 3.5 and 3.6, dense: three of four layers a gated delta net, the fourth attention with an output gate.

The converter puts value heads that share a key head apart (the first of each, then the second of each), so that key
heads can be repeated as a whole; Hugging Face has them side by side.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from anytune.engine.base import DeltaHeads
from anytune.errors import UserError
from anytune.model.architecture import MODULES, NORMS, Architecture, Order, Orders
from anytune.model.ffn.gated import Gated
from anytune.model.mixers.attention import Attention
from anytune.model.mixers.delta_net import DeltaNet

if TYPE_CHECKING:
    from anytune.model.config import Config


def read(get: Callable, c: Config) -> dict:
    behind = get("nextn_predict_layers", 0)
    layers, period = c.layers - behind, get("full_attention_interval", 4)
    keys, values, size = get("ssm.group_count"), get("ssm.time_step_rank"), get("ssm.state_size")
    kernel = get("ssm.conv_kernel")
    if layers < 1 or not 0 < keys <= values or values % keys or get("ssm.inner_size") != values * size or not period:
        raise UserError(
            f"{c.architecture}: {values} value heads of {size} over {keys} key heads, in {layers} layers, "
            "make no sense: the file is damaged"
        )
    return {
        "layers": layers,
        "behind": behind,
        "kernel": kernel,
        "recurrent": tuple((i + 1) % period != 0 for i in range(layers)),
        "delta": DeltaHeads(keys, values, size, size, c.eps),
    }


def parts(c: Config, layer: int) -> tuple[type, type]:
    return DeltaNet if c.recurrent[layer] else Attention, Gated


def values_of(size: str | None = None, behind_keys: bool = False) -> Order:
    """Rows that belong to value heads, as many each as the key `size` says (None: one)."""

    def order(shape: tuple[int, ...], get: Callable) -> Orders:
        keys, values, each = get("ssm.group_count"), get("ssm.time_step_rank"), get(size) if size else 1
        first = 2 * keys * each if behind_keys else 0
        heads = np.arange(values * each).reshape(values // keys, keys, each).swapaxes(0, 1).reshape(-1)
        return np.concatenate([np.arange(first), first + heads]), None

    return order


def out(shape: tuple[int, ...], get: Callable) -> Orders:
    """The columns of the projection behind the heads."""
    return None, values_of(SIZE)(shape, get)[0]


SIZE = "ssm.state_size"
QWEN35 = Architecture(
    "qwen35",
    neox=True,
    parts=parts,
    head_norms=True,
    gated_attention=True,
    ffn_norm="post_attention_norm",
    biases=(),
    constants=("ssm_conv1d",),
    read=read,
    keys=(
        "full_attention_interval",
        "nextn_predict_layers",
        "ssm.conv_kernel",
        "ssm.inner_size",
        "ssm.state_size",
        "ssm.time_step_rank",
        "ssm.group_count",
        "rope.dimension_sections",
    ),
    kind="qwen3_5_text",
    model_class="Qwen3_5ForCausalLM",
    other_classes=("Qwen3_5ForConditionalGeneration",),
    modules=MODULES
    | {
        "attn_qkv": "linear_attn.in_proj_qkv",
        "attn_gate": "linear_attn.in_proj_z",
        "ssm_beta": "linear_attn.in_proj_b",
        "ssm_alpha": "linear_attn.in_proj_a",
        "ssm_out": "linear_attn.out_proj",
    },
    norms={name: module for name, module in NORMS.items() if name != "ffn_norm"}
    | {"post_attention_norm": "post_attention_layernorm", "ssm_norm": "linear_attn.norm"},
    unit_norms=("attn_norm", "attn_q_norm", "attn_k_norm", "post_attention_norm", "output_norm"),
    reordered={
        "attn_qkv": values_of(SIZE, True),
        "attn_gate": values_of(SIZE),
        "ssm_conv1d": values_of(SIZE, True),
        "ssm_out": out,
        **dict.fromkeys(("ssm_beta", "ssm_alpha", "ssm_a", "ssm_dt"), values_of()),
    },
)
