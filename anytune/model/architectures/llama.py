"""Llama 1 to 3, Mistral 7B, Mixtral, SmolLM2 and all else that llama.cpp loads as `llama`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from anytune.model.architecture import LINEARS, NEIGHBOURS, Architecture, ExpertNames

if TYPE_CHECKING:
    from anytune.model.config import Config


def config(c: Config) -> dict:
    if c.router is None:
        return {}
    return {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "sliding_window": None,
        "num_local_experts": c.router.experts,
        "num_experts_per_tok": c.router.used,
    }


LLAMA = Architecture(
    "llama",
    neox=False,
    rope_factors=("rope_freqs",),
    biases=LINEARS,
    experts="some",
    kind="llama",
    model_class="LlamaForCausalLM",
    other_classes=("LLaMAForCausalLM", "MistralForCausalLM", "MixtralForCausalLM"),
    expert_names=ExpertNames(block="block_sparse_moe", each=("w1", "w3", "w2")),
    reordered=NEIGHBOURS,
    config=config,
)
