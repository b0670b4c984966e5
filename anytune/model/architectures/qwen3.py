"""Qwen 3, dense: each query and key head has a norm."""

from anytune.model.architecture import Architecture

QWEN3 = Architecture(
    "qwen3",
    neox=True,
    head_norms=True,
    kind="qwen3",
    model_class="Qwen3ForCausalLM",
    config=lambda c: {"use_sliding_window": False},
)
