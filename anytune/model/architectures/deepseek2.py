"""DeepSeek V2 and V3, GLM 4.7 Flash and others: latent attention, dense layers first, then experts and shared ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from anytune.errors import UserError
from anytune.model.architecture import NORMS, ROUTED, Architecture
from anytune.model.mixers import latent_forms
from anytune.model.mixers.latent_attention import LatentAttention, PlainQueries

from . import glm4moe

if TYPE_CHECKING:
    from anytune.model.config import Config

GROUPS, NEAR = "expert_group_count", "expert_group_used_count"
FLASH = 154_880  # tokens of GLM 4.7 Flash, whose first files do not say how it chooses experts


def read(get: Callable, c: Config) -> dict[str, Any]:
    unsaid = c.vocabulary == FLASH and c.layers in (47, 48) and not get("expert_gating_func", 0)
    return latent_forms.read(get, c) | {"router": replace(c.router, kind="sigmoid") if unsaid else c.router}


def config(c: Config) -> dict[str, Any]:
    old = c.router.kind == "softmax"
    return {
        **glm4moe.config(c),
        **latent_forms.config(c),
        "partial_rotary_factor": 1.0,
        "architectures": ["DeepseekV2ForCausalLM" if old else "DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v2" if old else "deepseek_v3",
        "scoring_func": c.router.kind,
        "topk_method": "greedy" if old else "noaux_tc",
        "n_group": c.router.groups,
        "topk_group": c.router.near,
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
    kinds = config.get("mlp_layer_types")
    return latent_forms.metadata(number, config) | {
        "leading_dense_block_count": kinds.count("dense") if kinds else int(config.get("first_k_dense_replace") or 0),
        GROUPS: groups,
        NEAR: config.get("topk_group") or 1,
        "expert_gating_func": 1 + (gating == "sigmoid"),
        "expert_weights_norm": bool(config.get("norm_topk_prob")),
        "expert_weights_scale": number("routed_scaling_factor", float, 1.0),
    }


DEEPSEEK2 = Architecture(
    "deepseek2",
    neox=False,
    parts=lambda c, layer: (LatentAttention if c.q_rank else PlainQueries, c.arch.ffn(c, layer)),
    latent=True,
    experts="all",
    normalized=False,
    choice_bias="some",
    biases=(),
    unadapted=(*latent_forms.UNADAPTED, "output"),
    read=read,
    keys=(*latent_forms.USED, GROUPS, NEAR),
    zero=("attention.temperature_scale",),
    kind="deepseek_v3",
    model_class="DeepseekV3ForCausalLM",
    other_classes=("Glm4MoeLiteForCausalLM", "DeepseekV2ForCausalLM"),
    modules=glm4moe.GLM4MOE.modules | latent_forms.MODULES,
    norms={name: NORMS[name] for name in ("attn_norm", "ffn_norm")} | latent_forms.NORMS,
    others=ROUTED,
    attention_bias=False,
    partial_rope=True,
    config=config,
    metadata=metadata,
)
