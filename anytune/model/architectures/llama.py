"""Llama 1 to 3, Mistral 7B, SmolLM2 and all else that llama.cpp loads as `llama`."""

from anytune.model.architecture import LINEARS, Architecture, interleaved

LLAMA = Architecture(
    "llama",
    neox=False,
    rope_factors=True,
    biases=LINEARS,
    kind="llama",
    model_class="LlamaForCausalLM",
    other_classes=("LLaMAForCausalLM", "MistralForCausalLM"),
    reordered={
        "attn_q": interleaved("attention.head_count"),
        "attn_k": interleaved("attention.head_count_kv", "attention.head_count"),
    },
)
