"""LFM2 with experts, such as 8B-A1B: LFM2's mixers, dense layers first, then experts chosen by sigmoids with a bias."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from anytune.errors import UserError
from anytune.model.architecture import ExpertNames, Other

from . import lfm2

if TYPE_CHECKING:
    from anytune.model.config import Config


def read(get: Callable, c: Config) -> dict[str, Any]:
    # llama.cpp makes the weights of the chosen add up to 1 and does not scale them, whatever the file says
    return lfm2.read(get, c) | {"router": replace(c.router, normalized=True, scale=1.0)}


def config(c: Config) -> dict[str, Any]:
    return {
        **{key: value for key, value in lfm2.config(c).items() if key != "block_auto_adjust_ff_dim"},
        "num_dense_layers": c.dense,
        "num_experts": c.router.experts,
        "num_experts_per_tok": c.router.used,
        "moe_intermediate_size": c.expert_hidden,
        "use_expert_bias": True,
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.0,
    }


def metadata(number: Callable, config: Mapping) -> dict[str, Any]:
    for key, computed in (("norm_topk_prob", True), ("routed_scaling_factor", 1.0), ("use_expert_bias", True)):
        if config.get(key, computed) != computed:
            raise UserError(f"config.json sets {key} to {config[key]!r}, which llama.cpp's lfm2moe lacks.")
    dense = config.get("num_dense_layers", 2)
    if isinstance(dense, bool) or not isinstance(dense, int) or dense < 0:
        raise UserError(f"config.json has no usable num_dense_layers ({str(dense)[:40]!r}).")
    return lfm2.metadata(number, {**config, "block_auto_adjust_ff_dim": False}) | {"leading_dense_block_count": dense}


LFM2MOE = replace(
    lfm2.LFM2,
    name="lfm2moe",
    parts=lambda c, layer: (*lfm2.LFM2.parts(c, layer)[:1], c.arch.ffn(c, layer)),
    experts="all",
    gating="sigmoid",
    choice_bias="all",
    read=read,
    kind="lfm2_moe",
    model_class="Lfm2MoeForCausalLM",
    other_classes=(),
    routers={"ffn_gate_inp": "feed_forward.gate"},
    expert_names=ExpertNames("feed_forward.experts", each=("w1", "w3", "w2")),
    others={**lfm2.LFM2.others, "exp_probs_b.bias": Other("feed_forward.expert_bias")},
    config=config,
    metadata=metadata,
)
