"""Qwen 3.5 and 3.6, dense: three of four layers a gated delta net, the fourth attention with an output gate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from anytune.errors import UserError
from anytune.model.architecture import MODULES, NORMS, Architecture
from anytune.model.mixers import delta_forms
from anytune.model.mixers.attention import Attention
from anytune.model.mixers.delta_net import DeltaNet

if TYPE_CHECKING:
    from anytune.model.config import Config


def read(get: Callable, c: Config) -> dict:
    behind = get("nextn_predict_layers", 0)
    if behind >= c.layers:
        raise UserError(f"{c.architecture}.nextn_predict_layers is {behind}, of {c.layers} blocks: the file is damaged")
    return {"layers": c.layers - behind, "behind": behind, **delta_forms.read(get, c, c.layers - behind)}


def parts(c: Config, layer: int) -> tuple[type, type]:
    return DeltaNet if c.recurrent[layer] else Attention, c.arch.ffn(c, layer)


def config(c: Config) -> dict:
    return {**delta_forms.config(c), "partial_rotary_factor": c.rope_size / c.head_size}


def metadata(number: Callable, config: Mapping) -> dict:
    head = number("head_dim", int, config["hidden_size"] // config["num_attention_heads"])
    return {
        **delta_forms.metadata(number, config),
        "rope.dimension_count": int(head * (config.get("partial_rotary_factor") or 0.25)),
        # of images: a text's tokens have one position, so that the sections are all turned alike
        "rope.dimension_sections": [*(config.get("mrope_section") or [11, 11, 10]), 0],
    }


QWEN35 = Architecture(
    "qwen35",
    neox=True,
    parts=parts,
    head_norms=True,
    gated_attention=True,
    ffn_norm="post_attention_norm",
    biases=(),
    constants=delta_forms.CONSTANTS,
    read=read,
    keys=(*delta_forms.KEYS, delta_forms.LISTED, "nextn_predict_layers", "rope.dimension_sections"),
    kind="qwen3_5_text",
    model_class="Qwen3_5ForCausalLM",
    other_classes=("Qwen3_5ForConditionalGeneration",),
    modules=MODULES | delta_forms.MODULES,
    norms={name: module for name, module in NORMS.items() if name != "ffn_norm"}
    | {"post_attention_norm": "post_attention_layernorm", "ssm_norm": "linear_attn.norm"},
    unit_norms=("attn_norm", "attn_q_norm", "attn_k_norm", "post_attention_norm", "output_norm"),
    reordered=delta_forms.REORDERED,
    others=delta_forms.OTHERS,
    partial_rope=True,
    config=config,
    metadata=metadata,
)
