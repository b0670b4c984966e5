"""Mistral's models since Ministral 3: Llama's layers, whose queries grow beyond the original context."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from anytune.model.architecture import LINEARS, NEIGHBOURS, Architecture

if TYPE_CHECKING:
    from anytune.model.config import Config

HEAT = "attention.temperature_scale"
YARN = ("rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow", "rope.scaling.yarn_log_multiplier")


def read(get: Callable, c: Config) -> dict:
    fast, slow, log = (float(get(key, usual, float)) for key, usual in zip(YARN, (32.0, 1.0, 0.0)))
    scaling = replace(c.scaling, fast=fast, slow=slow, log_factor=log)
    return {"heat": float(get(HEAT, 0.0, float)), "scaling": scaling}


def config(c: Config) -> dict:
    s = c.scaling
    return {
        "sliding_window": None,
        "rope_parameters": {
            "rope_type": s.kind,
            "rope_theta": c.rope_base,
            "factor": s.factor,
            "original_max_position_embeddings": s.original_context,
            "beta_fast": s.fast,
            "beta_slow": s.slow,
            "mscale": 1.0,
            "mscale_all_dim": s.log_factor,
            "llama_4_scaling_beta": c.heat,
        },
    }


def metadata(number: Callable, config: Mapping) -> dict:
    return {
        key: float(config[theirs])
        for key, theirs in ((HEAT, "llama_4_scaling_beta"), (YARN[2], "mscale_all_dim"))
        if config.get(theirs)
    }


MISTRAL3 = Architecture(
    "mistral3",
    neox=False,
    rope_factors=("rope_freqs",),
    biases=LINEARS,
    read=read,
    keys=(HEAT, *YARN),
    kind="ministral3",
    model_class="Ministral3ForCausalLM",
    other_classes=("Mistral3ForConditionalGeneration",),
    reordered=NEIGHBOURS,
    attention_bias=False,
    config=config,
    metadata=metadata,
)
