"""Qwen 3.5 and 3.6 with experts: Qwen 3.5's layers, a router to a few gated products, and one that all tokens go to."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from anytune.model.architecture import ROUTED, SHARED

from . import qwen35, qwen3moe

if TYPE_CHECKING:
    from anytune.model.config import Config


def config(c: Config) -> dict:
    return {
        **qwen35.config(c),
        **{key: value for key, value in qwen3moe.config(c).items() if key != "use_sliding_window"},
        "shared_expert_intermediate_size": c.shared_hidden,
    }


QWEN35MOE = replace(
    qwen35.QWEN35,
    name="qwen35moe",
    experts="all",
    gated_shared=True,
    kind="qwen3_5_moe_text",
    model_class="Qwen3_5MoeForCausalLM",
    other_classes=("Qwen3_5MoeForConditionalGeneration",),
    modules=qwen35.QWEN35.modules | SHARED,
    others=qwen35.QWEN35.others | ROUTED,
    config=config,
)
