"""Qwen 3 with experts: Qwen 3's attention, and in each layer a router to a few of its gated products."""

from __future__ import annotations

from typing import TYPE_CHECKING

from anytune.model.architecture import Architecture

if TYPE_CHECKING:
    from anytune.model.config import Config


def config(c: Config) -> dict:
    return {
        "use_sliding_window": False,
        "num_experts": c.router.experts,
        "num_experts_per_tok": c.router.used,
        "norm_topk_prob": c.router.normalized,
        "moe_intermediate_size": c.expert_hidden,
    }


QWEN3MOE = Architecture(
    "qwen3moe",
    neox=True,
    head_norms=True,
    experts="all",
    kind="qwen3_moe",
    model_class="Qwen3MoeForCausalLM",
    config=config,
)
