"""Llama 1 to 3, Mistral 7B, Mixtral, SmolLM2 and all else that llama.cpp loads as `llama`."""

from anytune.model.architecture import LINEARS, NEIGHBOURS, Architecture

LLAMA = Architecture(
    "llama",
    neox=False,
    rope_factors=("rope_freqs",),
    biases=LINEARS,
    experts="some",
    kind="llama",
    model_class="LlamaForCausalLM",
    other_classes=("LLaMAForCausalLM", "MistralForCausalLM", "MixtralForCausalLM"),
    reordered=NEIGHBOURS,
)
