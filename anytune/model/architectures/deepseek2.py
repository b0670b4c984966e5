"""DeepSeek V2 and V3, GLM 4.7 Flash and others: latent attention, dense layers first, then experts and shared ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from anytune.engine.base import LatentHeads
from anytune.errors import UserError
from anytune.model.architecture import NORMS, ROUTED, Architecture
from anytune.model.mixers.latent_attention import LatentAttention, PlainQueries, scaled

from . import glm4moe

if TYPE_CHECKING:
    from anytune.model.config import Config

RANK, QUERIES, *WIDTHS = (f"attention.{x}" for x in ("kv_lora_rank", "q_lora_rank", "key_length", "value_length"))
KEYS, VALUES = (f"{width}_mla" for width in WIDTHS)
GROUPS, NEAR, YARN = "expert_group_count", "expert_group_used_count", "rope.scaling.yarn_log_multiplier"
FLASH = 154_880  # tokens of GLM 4.7 Flash, whose first files do not say how it chooses experts


def read(get: Callable, c: Config) -> dict[str, Any]:
    split = get(KEYS, 0) > 0
    keys, values = (get(KEYS), get(VALUES)) if split else (c.head_size, get(WIDTHS[1], c.head_size))
    shape = LatentHeads(c.heads, get(RANK), keys - c.rope_size, c.rope_size, values)
    if not (0 < shape.plain < 4096 and 0 < values <= 4096 and 0 < shape.rank <= 1 << 16):
        raise UserError(f"{get.where}: the widths of its heads or latents make no sense: the file is damaged")
    unsaid = c.vocabulary == FLASH and c.layers in (47, 48) and not get("expert_gating_func", 0)
    return {
        "head_size": shape.size,
        "n_kv_heads": c.heads,
        "latent": shape,
        "split_latent": split,
        "q_rank": 0 if "blk.0.attn_q.weight" in get.tensors else get(QUERIES, 0),
        "router": replace(c.router, kind="sigmoid") if unsaid else c.router,
        **scaled(c.scaling, keys, float(get(YARN, 0.0, float))),
    }


def config(c: Config) -> dict[str, Any]:
    s, old, rope = c.latent, c.router.kind == "softmax", {}
    if c.scaling.kind == "yarn":
        stretch = 10 * (math.sqrt(c.attention_scale * math.sqrt(s.keys)) - 1) / math.log(c.scaling.factor)
        rope = {"mscale": stretch, "mscale_all_dim": stretch}
    return glm4moe.config(c) | {
        "partial_rotary_factor": 1.0,
        "architectures": ["DeepseekV2ForCausalLM" if old else "DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v2" if old else "deepseek_v3",
        "head_dim": s.turned,
        **{"kv_lora_rank": s.rank, "q_lora_rank": c.q_rank or None},
        "qk_nope_head_dim": s.plain,
        "qk_rope_head_dim": s.turned,
        "v_head_dim": s.value,
        **{"scoring_func": c.router.kind, "topk_method": "greedy" if old else "noaux_tc"},
        **{"n_group": c.router.groups, "topk_group": c.router.near},
        "rope_parameters": {"rope_type": "default", "rope_theta": c.rope_base, **rope},
    }


def metadata(number: Callable, config: Mapping) -> dict[str, Any]:
    usual = "softmax" if config["architectures"][0].startswith("DeepseekV2") else "sigmoid"
    gating, groups = config.get("scoring_func") or usual, config.get("n_group") or 1
    betas = config.get("beta_fast") or 32, config.get("beta_slow") or 1
    for key, odd in (
        ("rope_interleave", config.get("rope_interleave") is False),
        ("scoring_func", gating not in ("softmax", "sigmoid")),
        ("topk_method", groups > 1 and config.get("topk_method") == "group_limited_greedy"),
        ("mscale", config.get("mscale", 1.0) != config.get("mscale_all_dim", 1.0)),
        ("beta_fast", betas != (32, 1)),
    ):
        if odd:
            raise UserError(f"config.json sets {key} to {config.get(key)!r}, which llama.cpp's deepseek2 lacks.")
    rank, turned, kinds = number("kv_lora_rank", int), number("qk_rope_head_dim", int), config.get("mlp_layer_types")
    return {
        "attention.head_count_kv": 1,
        RANK: rank,
        QUERIES: number("q_lora_rank", int) if config.get("q_lora_rank") else 0,
        **dict(zip(WIDTHS, (rank + turned, rank))),
        **{KEYS: number("qk_nope_head_dim", int) + turned, VALUES: number("v_head_dim", int)},
        "rope.dimension_count": turned,
        "leading_dense_block_count": kinds.count("dense") if kinds else int(config.get("first_k_dense_replace") or 0),
        **{GROUPS: groups, NEAR: config.get("topk_group") or 1},
        "expert_gating_func": 1 + (gating == "sigmoid"),
        "expert_weights_norm": bool(config.get("norm_topk_prob")),
        "expert_weights_scale": number("routed_scaling_factor", float, 1.0),
        **({YARN: 0.1 * float(config["mscale_all_dim"])} if config.get("mscale_all_dim") else {}),
    }


LINEARS = {f"attn_{x}": f"self_attn.{x}_proj" for x in ("q_a", "q_b", "kv_b", "k_b", "v_b")}
LINEARS["attn_kv_a_mqa"] = "self_attn.kv_a_proj_with_mqa"
DEEPSEEK2 = Architecture(
    "deepseek2",
    neox=False,
    parts=lambda c, layer: (LatentAttention if c.q_rank else PlainQueries, c.arch.ffn(c, layer)),
    latent=True,
    experts="all",
    normalized=False,
    choice_bias="some",
    biases=(),
    unadapted=("attn_q", "attn_q_a", "attn_q_b", "attn_kv_a_mqa", "output"),
    read=read,
    keys=(RANK, QUERIES, KEYS, VALUES, GROUPS, NEAR, YARN),
    zero=("attention.temperature_scale",),
    kind="deepseek_v3",
    model_class="DeepseekV3ForCausalLM",
    other_classes=("Glm4MoeLiteForCausalLM", "DeepseekV2ForCausalLM"),
    modules=glm4moe.GLM4MOE.modules | LINEARS,
    norms={name: NORMS[name] for name in ("attn_norm", "ffn_norm")}
    | {f"attn_{part}_a_norm": f"self_attn.{part}_a_layernorm" for part in ("q", "kv")},
    others=ROUTED,
    attention_bias=False,
    partial_rope=True,
    config=config,
    metadata=metadata,
)
