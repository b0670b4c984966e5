"""GLM 4.5 Air: experts chosen by sigmoids with a bias for the choice, one expert for all tokens, dense
layers first. (The larger models' norms of heads are not computed.)"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from anytune.errors import UserError
from anytune.model.architecture import MODULES, NORMS, ROUTED, SHARED, Architecture

if TYPE_CHECKING:
    from anytune.model.config import Config


def read(get: Callable, c: Config) -> dict:
    behind = get("nextn_predict_layers", 0)
    if behind >= c.layers:
        raise UserError(f"glm4moe.nextn_predict_layers is {behind}, of {c.layers} blocks: the file is damaged")
    return {"layers": c.layers - behind, "behind": behind}


def config(c: Config) -> dict:
    return {
        "partial_rotary_factor": c.rope_size / c.head_size,
        "n_routed_experts": c.router.experts,
        "num_experts_per_tok": c.router.used,
        "n_shared_experts": c.shared_hidden // c.expert_hidden,
        "moe_intermediate_size": c.expert_hidden,
        "first_k_dense_replace": c.dense,
        "norm_topk_prob": c.router.normalized,
        "routed_scaling_factor": c.router.scale,
        "n_group": 1,
        "topk_group": 1,
        "num_nextn_predict_layers": 0,
        "use_qk_norm": False,
    }


GLM4MOE = Architecture(
    "glm4moe",
    neox=True,
    experts="all",
    gating="sigmoid",
    normalized=False,
    choice_bias="all",
    ffn_norm="post_attention_norm",
    read=read,
    keys=("nextn_predict_layers",),
    kind="glm4_moe",
    model_class="Glm4MoeForCausalLM",
    modules=MODULES | {part: module.replace("expert.", "experts.") for part, module in SHARED.items()},
    norms={name: module for name, module in NORMS.items() if name != "ffn_norm"}
    | {"post_attention_norm": "post_attention_layernorm"},
    others=ROUTED,
    partial_rope=True,
    config=config,
)
