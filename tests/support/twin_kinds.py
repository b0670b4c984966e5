"""What transformers calls and sets differently for each architecture: the table of twin.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.support import twin_experts

ENDS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "token_embd_norm": "model.embedding_norm",
    "output": "lm_head",
    "per_layer_token_embd": "model.embed_tokens_per_layer",
    "per_layer_model_proj": "model.per_layer_model_projection",
    "per_layer_proj_norm": "model.per_layer_projection_norm",
}
WHOLE = {
    "exp_probs_b": "mlp.gate.e_score_correction_bias",
    "ssm_a": "linear_attn.A_log",
    "ssm_dt": "linear_attn.dt_bias",
    "layer_output_scale": "layer_scalar",
    "attn_sinks": "self_attn.sinks",
    "ffn_gate_inp.scale": "router.scale",
    "ffn_down_exps.scale": "router.per_expert_scale",
}
LAYER_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    **twin_experts.NAMES,
}
GEMMA_NAMES = LAYER_NAMES | {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
OLMO2_NAMES = LAYER_NAMES | {
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
PHI3_NAMES = LAYER_NAMES | {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}
GPTOSS_NAMES = LAYER_NAMES | {"post_attention_norm": "post_attention_layernorm", "ffn_gate_inp": "mlp.router"}
GEMMA4_NAMES = GEMMA_NAMES | {
    "inp_gate": "per_layer_input_gate",
    "proj": "per_layer_projection",
    "post_norm": "post_per_layer_input_norm",
    "ffn_gate_inp": "router.proj",
    "pre_ffw_norm_2": "pre_feedforward_layernorm_2",
    **{f"post_ffw_norm_{i}": f"post_feedforward_layernorm_{i}" for i in (1, 2)},
}
BITNET_NAMES = LAYER_NAMES | {"attn_sub_norm": "self_attn.attn_sub_norm", "ffn_sub_norm": "mlp.ffn_sub_norm"}
LFM2_NAMES = {
    **{f"attn_{name}": f"self_attn.{name}_proj" for name in "qkv"},
    **{f"attn_{name}_norm": f"self_attn.{name}_layernorm" for name in "qk"},
    **{f"ffn_{name}": f"feed_forward.{theirs}" for name, theirs in (("gate", "w1"), ("up", "w3"), ("down", "w2"))},
    **{f"shortconv.{name}": f"conv.{name}" for name in ("in_proj", "conv", "out_proj")},
    "attn_output": "self_attn.out_proj",
    "attn_norm": "operator_norm",
    "ffn_norm": "ffn_norm",
}
LFM2MOE_NAMES = LFM2_NAMES | {"ffn_gate_inp": "feed_forward.gate"}
GLM4MOE_NAMES = LAYER_NAMES | {
    "post_attention_norm": "post_attention_layernorm",
    **{f"ffn_{part}_shexp": f"mlp.shared_experts.{part}_proj" for part in ("gate", "up", "down")},
}
QWEN35_NAMES = LAYER_NAMES | {
    "post_attention_norm": "post_attention_layernorm",
    "attn_qkv": "linear_attn.in_proj_qkv",
    "attn_gate": "linear_attn.in_proj_z",
    "ssm_beta": "linear_attn.in_proj_b",
    "ssm_alpha": "linear_attn.in_proj_a",
    "ssm_conv1d": "linear_attn.conv1d",
    "ssm_norm": "linear_attn.norm",
    "ssm_out": "linear_attn.out_proj",
}


@dataclass(frozen=True)
class Kind:
    """name: of the class of the model, without ForCausalLM; config: of its configuration's; permuted: whether rows of
    queries and keys are llama's; settings: (metadata by key, those of all architectures, tensors) -> its own."""

    name: str
    config: str = ""
    names: Mapping[str, str] = field(default_factory=lambda: LAYER_NAMES)
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


DEEPSEEK_NAMES = LAYER_NAMES | {
    "attn_q_a": "self_attn.q_a_proj",
    "attn_q_a_norm": "self_attn.q_a_layernorm",
    "attn_q_b": "self_attn.q_b_proj",
    "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
    "attn_kv_a_norm": "self_attn.kv_a_layernorm",
    "attn_kv_b": "self_attn.kv_b_proj",
    **{f"ffn_{part}_shexp": f"mlp.shared_experts.{part}_proj" for part in ("gate", "up", "down")},
}
KINDS = {
    "deepseek2": Kind("Glm4MoeLite", names=DEEPSEEK_NAMES, settings=deepseek),
    "deepseek2 with groups": Kind("DeepseekV3", names=DEEPSEEK_NAMES, settings=deepseek),
    "deepseek2 with softmax": Kind("DeepseekV2", names=DEEPSEEK_NAMES, settings=deepseek),
    "glm4moe": Kind("Glm4Moe", names=GLM4MOE_NAMES, settings=glm4moe),
    "gpt-oss": Kind("GptOss", names=GPTOSS_NAMES, settings=gptoss),
    "lfm2moe": Kind("Lfm2Moe", names=LFM2MOE_NAMES, settings=lfm2moe),
    "lfm2": Kind("Lfm2", names=LFM2_NAMES, settings=lfm2),
    "bitnet": Kind("BitNet", names=BITNET_NAMES, settings=lambda get, common, weights: {"hidden_act": "silu"}),
    "gemma4": Kind("Gemma4", "Gemma4TextConfig", GEMMA4_NAMES, settings=gemma4),
    "gemma2": Kind("Gemma2", names=GEMMA_NAMES, settings=gemma2),
    "llama": Kind("Llama", permuted=True),
    "llama with experts": Kind("Mixtral", permuted=True, settings=experts),
    "qwen2": Kind("Qwen2"),
    "qwen3": Kind("Qwen3"),
    "qwen3moe": Kind("Qwen3Moe", settings=experts),
    "gemma3": Kind("Gemma3", "Gemma3TextConfig", GEMMA_NAMES, settings=gemma3),
    "qwen35": Kind("Qwen3_5", "Qwen3_5TextConfig", QWEN35_NAMES, settings=qwen35),
    "qwen35moe": Kind(
        "Qwen3_5Moe",
        "Qwen3_5MoeTextConfig",
        QWEN35_NAMES,
        settings=lambda *args: qwen35(*args) | experts(*args) | {"num_experts": args[0]("expert_count")},
    ),
    "smollm3": Kind("SmolLM3", permuted=True),
    "granite": Kind("Granite", permuted=True, settings=granite),
    "olmo2": Kind("Olmo2", names=OLMO2_NAMES),
    "olmo2 with windows": Kind("Olmo3", names=OLMO2_NAMES, settings=olmo3),
    "phi3": Kind("Phi3", names=PHI3_NAMES, settings=phi3),
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
