"""LFM2, dense: short convolutions, and attention with norms of heads in the layers that have key heads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from anytune.errors import UserError
from anytune.model.architecture import LAYER_TYPES, Architecture, Other
from anytune.model.ffn.gated import Gated
from anytune.model.mixers.attention import Attention
from anytune.model.mixers.short_conv import ShortConv

if TYPE_CHECKING:
    from anytune.model.config import Config

CACHE, HEADS = "shortconv.l_cache", "attention.head_count_kv"


def read(get: Callable, c: Config) -> dict[str, Any]:
    heads, kernel = get.each(HEADS, c.layers), get(CACHE)
    if heads is None or kernel < 2 or any(count and c.heads % count for count in heads):
        raise UserError(f"{get.where}: its key heads or its convolution make no sense: the file is damaged")
    return {"kernel": kernel, "layer_kv_heads": heads, "recurrent": tuple(not count for count in heads)}


def config(c: Config) -> dict[str, Any]:
    return {
        "norm_eps": c.eps,
        "conv_L_cache": c.kernel,
        "conv_bias": False,
        "block_auto_adjust_ff_dim": False,
        "layer_types": ["conv" if state else LAYER_TYPES[1] for state in c.recurrent],
    }


def metadata(number: Callable, config: Mapping) -> dict[str, Any]:
    heads, hidden = number("num_key_value_heads", int), number("intermediate_size", int)
    if config.get("block_auto_adjust_ff_dim", True):
        multiple = number("block_multiple_of", int, 256)
        hidden = int(number("block_ffn_dim_multiplier", float, 1.0) * int(2 * hidden / 3))
        hidden = -(-hidden // multiple) * multiple
    return {
        CACHE: number("conv_L_cache", int, 3),
        HEADS: [0 if kind == "conv" else heads for kind in config["layer_types"]],
        "feed_forward_length": hidden,
    }


LFM2 = Architecture(
    "lfm2",
    neox=True,
    parts=lambda c, layer: (ShortConv if c.recurrent[layer] else Attention, Gated),
    head_norms=True,
    output_norm="token_embd_norm",
    biases=(),
    constants=("shortconv.conv",),
    lists=(HEADS,),
    read=read,
    keys=(CACHE,),
    kind="lfm2",
    model_class="Lfm2ForCausalLM",
    other_classes=("LFM2ForCausalLM",),
    modules={
        **{f"attn_{name}": f"self_attn.{name}_proj" for name in "qkv"},
        "attn_output": "self_attn.out_proj",
        **{f"ffn_{name}": f"feed_forward.{theirs}" for name, theirs in (("gate", "w1"), ("up", "w3"), ("down", "w2"))},
        **{f"shortconv.{name}": f"conv.{name}" for name in ("in_proj", "out_proj")},
    },
    norms={
        "attn_norm": "operator_norm",
        "ffn_norm": "ffn_norm",
        "attn_q_norm": "self_attn.q_layernorm",
        "attn_k_norm": "self_attn.k_layernorm",
    },
    others={"shortconv.conv.weight": Other("conv.conv.weight", shape=lambda shape: (shape[0], 1, shape[1]))},
    attention_bias=False,
    config=config,
    metadata=metadata,
)
