"""The class and the settings of each architecture in transformers: the table of twin.py. (Names: twin_names.py.)"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.support import twin_names


@dataclass(frozen=True)
class Kind:
    """name: of the class of the model, without ForCausalLM; config: of its configuration's; permuted: whether rows of
    queries and keys are llama's; settings: (metadata by key, those of all architectures, tensors) -> its own."""

    name: str
    config: str = ""
    names: Mapping[str, str] = field(default_factory=lambda: twin_names.LAYER)
    permuted: bool = False
    settings: Callable[[Callable, dict, dict], dict[str, Any]] = lambda get, common, weights: {}


def experts(get: Callable, common: dict, weights: dict) -> dict:
    return dict(
        num_local_experts=get("expert_count"),
        num_experts_per_tok=get("expert_used_count"),
        moe_intermediate_size=get("expert_feed_forward_length"),
        shared_expert_intermediate_size=get("expert_shared_feed_forward_length"),
        norm_topk_prob=True,
    )


def qwen35(get: Callable, common: dict, weights: dict) -> dict:
    period, layers = get("full_attention_interval"), get("block_count")
    return dict(
        layer_types=["linear_attention" if (i + 1) % period else "full_attention" for i in range(layers)],
        linear_conv_kernel_dim=get("ssm.conv_kernel"),
        linear_key_head_dim=get("ssm.state_size"),
        linear_value_head_dim=get("ssm.state_size"),
        linear_num_key_heads=get("ssm.group_count"),
        linear_num_value_heads=get("ssm.time_step_rank"),
        rope_parameters=common["rope_parameters"]
        | {
            "partial_rotary_factor": get("rope.dimension_count") / common["head_dim"],
            "mrope_section": get("rope.dimension_sections")[:3],
        },
    )


def gemma3(get: Callable, common: dict, weights: dict) -> dict:
    return dict(
        query_pre_attn_scalar=common["head_dim"],
        sliding_window=get("attention.sliding_window"),
        rope_parameters={
            "full_attention": common["rope_parameters"],
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
    )


def granite(get: Callable, common: dict, weights: dict) -> dict:
    return dict(
        embedding_multiplier=get("embedding_scale"),
        residual_multiplier=get("residual_scale"),
        attention_multiplier=get("attention.scale"),
        logits_scaling=get("logit_scale"),
    )


def mistral3(get: Callable, common: dict, weights: dict) -> dict:
    return dict(
        rope_parameters=common["rope_parameters"]
        | dict(
            mscale=1.0,
            mscale_all_dim=get("rope.scaling.yarn_log_multiplier"),
            llama_4_scaling_beta=get("attention.temperature_scale"),
        )
    )


def olmo3(get: Callable, common: dict, weights: dict) -> dict:
    rope = common["rope_parameters"]
    return dict(
        sliding_window=get("attention.sliding_window"),
        layer_types=[
            "sliding_attention" if windowed else "full_attention"
            for windowed in get("attention.sliding_window_pattern")
        ],
        rope_parameters={
            "full_attention": rope,
            "sliding_attention": {"rope_type": "default", "rope_theta": rope["rope_theta"]},
        },
    )


def phi3(get: Callable, common: dict, weights: dict) -> dict:
    rope = common["rope_parameters"] | {"partial_rotary_factor": get("rope.dimension_count") / common["head_dim"]}
    original = get("rope.scaling.original_context_length")
    if "rope_factors_long.weight" in weights:
        rope |= dict(
            rope_type="longrope",
            short_factor=weights["rope_factors_short.weight"].tolist(),
            long_factor=weights["rope_factors_long.weight"].tolist(),
            attention_factor=get("rope.scaling.attn_factor"),
            original_max_position_embeddings=original,
        )
    return dict(rope_parameters=rope, original_max_position_embeddings=original)


def gemma2(get: Callable, common: dict, weights: dict) -> dict:
    return dict(
        query_pre_attn_scalar=common["head_dim"],
        sliding_window=get("attention.sliding_window"),
        attn_logit_softcapping=get("attn_logit_softcapping"),
        final_logit_softcapping=get("final_logit_softcapping"),
    )


def gptoss(get: Callable, common: dict, weights: dict) -> dict:
    own = dict(sliding_window=get("attention.sliding_window"), intermediate_size=get("expert_feed_forward_length"))
    return experts(get, common, weights) | own | {"rope_parameters": common["rope_parameters"] | {"truncate": True}}


def gemma4(get: Callable, common: dict, weights: dict) -> dict:
    windows, base = get("attention.sliding_window_pattern"), common["rope_parameters"]["rope_theta"]
    keys, ff, own = (
        get(key) for key in ("attention.head_count_kv", "feed_forward_length", "embedding_length_per_layer_input")
    )
    keys = keys if isinstance(keys, list) else [keys] * len(windows)
    turned = float((weights["rope_freqs.weight"] == 1).mean())
    return dict(
        head_dim=get("attention.key_length_swa"),
        global_head_dim=get("attention.key_length"),
        num_key_value_heads=keys[windows.index(True)],
        num_global_key_value_heads=keys[windows.index(False)],
        attention_k_eq_v=not own,
        num_kv_shared_layers=get("attention.shared_kv_layers"),
        intermediate_size=min(ff) if isinstance(ff, list) else ff,
        use_double_wide_mlp=isinstance(ff, list),
        hidden_size_per_layer_input=own,
        vocab_size_per_layer_input=common["vocab_size"],
        layer_types=["sliding_attention" if windowed else "full_attention" for windowed in windows],
        sliding_window=get("attention.sliding_window"),
        final_logit_softcapping=get("final_logit_softcapping"),
        enable_moe_block=bool(get("expert_count")),
        num_experts=get("expert_count"),
        top_k_experts=get("expert_used_count"),
        moe_intermediate_size=get("expert_feed_forward_length"),
        rope_parameters={
            "full_attention": {"rope_type": "proportional", "rope_theta": base, "partial_rotary_factor": turned},
            "sliding_attention": {"rope_type": "default", "rope_theta": get("rope.freq_base_swa")},
        },
    )


def lfm2(get: Callable, common: dict, weights: dict) -> dict:
    heads = get("attention.head_count_kv")
    return dict(
        num_key_value_heads=max(heads),
        norm_eps=common["rms_norm_eps"],
        conv_L_cache=get("shortconv.l_cache"),
        block_auto_adjust_ff_dim=False,
        layer_types=["full_attention" if count else "conv" for count in heads],
    )


def lfm2moe(get: Callable, common: dict, weights: dict) -> dict:
    own = lfm2(get, common, weights)
    del own["block_auto_adjust_ff_dim"]
    more = dict(num_experts=get("expert_count"), num_dense_layers=get("leading_dense_block_count"))
    return experts(get, common, weights) | own | more


def glm4moe(get: Callable, common: dict, weights: dict) -> dict:
    return experts(get, common, weights) | dict(
        n_routed_experts=get("expert_count"),
        n_shared_experts=get("expert_shared_count"),
        first_k_dense_replace=get("leading_dense_block_count"),
        routed_scaling_factor=get("expert_weights_scale"),
        attention_bias=True,
        rope_parameters=common["rope_parameters"] | {"partial_rotary_factor": 0.5},
    )


def deepseek(get: Callable, common: dict, weights: dict) -> dict:
    split = get("attention.key_length_mla") is not None
    keys, values = (get(f"attention.{x}_length{'_mla' * split}") for x in ("key", "value"))
    turned, dense, layers = (get(k) for k in ("rope.dimension_count", "leading_dense_block_count", "block_count"))
    rope = common["rope_parameters"]
    if log := get("rope.scaling.yarn_log_multiplier"):
        rope = rope | dict(mscale=10 * log, mscale_all_dim=10 * log)
    return experts(get, common, weights) | dict(
        head_dim=turned,
        num_key_value_heads=common["num_attention_heads"],
        kv_lora_rank=get("attention.kv_lora_rank"),
        q_lora_rank=get("attention.q_lora_rank") or None,
        qk_rope_head_dim=turned,
        qk_nope_head_dim=keys - turned,
        v_head_dim=values,
        n_routed_experts=get("expert_count"),
        n_shared_experts=get("expert_shared_count"),
        routed_scaling_factor=get("expert_weights_scale", 1.0),
        norm_topk_prob=bool(get("expert_weights_norm")),
        first_k_dense_replace=dense,
        mlp_layer_types=["dense" if i < dense else "sparse" for i in range(layers)],
        n_group=get("expert_group_count", 1),
        topk_group=get("expert_group_used_count", 1),
        topk_method="greedy",
        rope_parameters=rope,
    )


KINDS = {
    "deepseek2": Kind("Glm4MoeLite", names=twin_names.DEEPSEEK, settings=deepseek),
    "deepseek2 with groups": Kind("DeepseekV3", names=twin_names.DEEPSEEK, settings=deepseek),
    "deepseek2 with softmax": Kind("DeepseekV2", names=twin_names.DEEPSEEK, settings=deepseek),
    "glm4moe": Kind("Glm4Moe", names=twin_names.GLM4MOE, settings=glm4moe),
    "gpt-oss": Kind("GptOss", names=twin_names.GPTOSS, settings=gptoss),
    "lfm2moe": Kind("Lfm2Moe", names=twin_names.LFM2MOE, settings=lfm2moe),
    "lfm2": Kind("Lfm2", names=twin_names.LFM2, settings=lfm2),
    "bitnet": Kind("BitNet", names=twin_names.BITNET, settings=lambda get, common, weights: {"hidden_act": "silu"}),
    "gemma4": Kind("Gemma4", "Gemma4TextConfig", twin_names.GEMMA4, settings=gemma4),
    "gemma2": Kind("Gemma2", names=twin_names.GEMMA, settings=gemma2),
    "llama": Kind("Llama", permuted=True),
    "llama with experts": Kind("Mixtral", permuted=True, settings=experts),
    "qwen2": Kind("Qwen2"),
    "qwen3": Kind("Qwen3"),
    "qwen3moe": Kind("Qwen3Moe", settings=experts),
    "gemma3": Kind("Gemma3", "Gemma3TextConfig", twin_names.GEMMA, settings=gemma3),
    "qwen35": Kind("Qwen3_5", "Qwen3_5TextConfig", twin_names.QWEN35, settings=qwen35),
    "qwen35moe": Kind(
        "Qwen3_5Moe",
        "Qwen3_5MoeTextConfig",
        twin_names.QWEN35,
        settings=lambda *args: qwen35(*args) | experts(*args) | {"num_experts": args[0]("expert_count")},
    ),
    "smollm3": Kind("SmolLM3", permuted=True),
    "granite": Kind("Granite", permuted=True, settings=granite),
    "olmo2": Kind("Olmo2", names=twin_names.OLMO2),
    "olmo2 with windows": Kind("Olmo3", names=twin_names.OLMO2, settings=olmo3),
    "phi3": Kind("Phi3", names=twin_names.PHI3, settings=phi3),
    "mistral3": Kind("Ministral3", permuted=True, settings=mistral3),
}


def kind_of(values: Mapping[str, Any]) -> Kind:
    """The row of a file with these metadata."""
    arch = values["general.architecture"]
    if arch == "deepseek2":
        groups, sigmoid = (f"{arch}.{key}" in values for key in ("expert_group_count", "expert_gating_func"))
        return KINDS[f"{arch} with groups" if groups else arch if sigmoid else f"{arch} with softmax"]
    windows, experts = (f"{arch}.{key}" in values for key in ("attention.sliding_window", "expert_count"))
    return KINDS.get(f"{arch} with windows" if windows else f"{arch} with experts" if experts else arch) or KINDS[arch]
