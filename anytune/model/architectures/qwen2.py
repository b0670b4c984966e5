"""Qwen 2 and 2.5: Llama's layers with biases before attention."""

from anytune.model.architecture import Architecture

QWEN2 = Architecture(
    "qwen2",
    neox=True,
    biases=("attn_q", "attn_k", "attn_v", "output"),
    kind="qwen2",
    model_class="Qwen2ForCausalLM",
    attention_bias=False,
    config=lambda c: {"use_sliding_window": False},
)
