"""config.json as GGUF metadata."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from anytune.errors import UserError
from anytune.model.architecture import Architecture
from anytune.model.architectures import ARCHITECTURES

CLASSES = {name: arch.name for arch in ARCHITECTURES.values() for name in (arch.model_class, *arch.other_classes)}
GEMMA3 = {
    "head_dim": 256,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 131072,
    "rope_theta": 1e6,
}  # what its config.json may leave out
LONG = ("longrope", "su")  # the second is what old folders call it
NOT_ZERO = ("attn_logit_softcapping", "final_logit_softcapping", "logit_scale", "residual_multiplier")


def text_config(config: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """(architecture, the language model's settings). UserError for an architecture that is not known."""
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names and isinstance(names[0], str) else None
    if name not in CLASSES:
        raise UserError(
            f"config.json names the class {str(name)[:60]}, which cannot be converted yet; those that can "
            f"are {', '.join(CLASSES)}."
        )
    inner = config.get("text_config")
    merged = config | inner if isinstance(inner, dict) else dict(config)
    if "rms_norm_eps" not in merged and "norm_eps" in merged:
        merged["rms_norm_eps"] = merged["norm_eps"]
    layers = merged.get("per_layer_config")
    full = next(iter(layers.values()), None) if isinstance(layers, dict) else None
    if isinstance(full, dict):  # Gemma 4's layers without a window, as newer versions of transformers save them
        merged["global_head_dim"] = full.get("head_dim")
        merged["num_global_key_value_heads"] = full.get("num_key_value_heads")
    return CLASSES[name], (GEMMA3 | merged if CLASSES[name] == "gemma3" else merged)


class _Config:
    """Settings by name, each checked; `where` goes into messages."""

    def __init__(self, values: dict[str, Any]):
        self.values = values

    def number(self, name: str, kind: type, default: Any = None) -> Any:
        value = self.values.get(name)
        value = default if value is None else value
        sound = isinstance(value, (int, kind)) and not isinstance(value, bool) and math.isfinite(value) and value > 0
        if not sound:
            raise UserError(f"config.json has no usable {name} ({str(value)[:40]!r}).")
        return kind(value)


def metadata(architecture: str, config: dict[str, Any], name: str, vocabulary: int) -> dict[str, Any]:
    """GGUF's keys of the model's shape, as llama.cpp's converter names them. Raises UserError."""
    c = _Config(config)
    heads, width = c.number("num_attention_heads", int), c.number("hidden_size", int)
    values = {
        "block_count": c.number("num_hidden_layers", int),
        "context_length": c.number("max_position_embeddings", int),
        "embedding_length": width,
        "attention.head_count": heads,
        "attention.head_count_kv": c.number("num_key_value_heads", int, heads),
        "attention.layer_norm_rms_epsilon": c.number("rms_norm_eps", float),
    }
    if config.get("intermediate_size") or not ARCHITECTURES[architecture].experts:
        values["feed_forward_length"] = c.number("intermediate_size", int)
    if ARCHITECTURES[architecture].experts:
        values |= _experts(c, ARCHITECTURES[architecture])
    rope = rope_parameters(config)
    values["rope.freq_base"] = float(rope.get("rope_theta") or 10_000.0)
    if config.get("head_dim"):
        values |= dict.fromkeys(("attention.key_length", "attention.value_length"), c.number("head_dim", int))
    if not ARCHITECTURES[architecture].neox:
        values |= {"vocab_size": vocabulary, "rope.dimension_count": c.number("head_dim", int, width // heads)}
    if architecture == "gemma3" and config.get("sliding_window_pattern") != 1:
        values["attention.sliding_window"] = c.number("sliding_window", int)
    if rope["rope_type"] in LONG and len(ARCHITECTURES[architecture].rope_factors) < 2:
        raise UserError(
            f"config.json has RoPE scaling of type {rope['rope_type']!r}, which llama.cpp's {architecture} lacks."
        )
    values |= _scaling(rope, values["context_length"])
    arch = ARCHITECTURES[architecture]
    if arch.partial_rope and config.get("partial_rotary_factor", rope.get("partial_rotary_factor")):
        part = config.get("partial_rotary_factor") or rope["partial_rotary_factor"]
        values["rope.dimension_count"] = int(c.number("head_dim", int, width // heads) * part)
    if arch.window_period and architecture != "gemma3" and config.get("sliding_window"):
        values["attention.sliding_window"] = c.number("sliding_window", int)
    values |= arch.metadata(c.number, config | rope)
    for odd in NOT_ZERO:
        if config.get(odd) and odd not in ARCHITECTURES[architecture].settings:
            raise UserError(f"config.json sets {odd} to {config[odd]!r}, which llama.cpp's {architecture} lacks.")
    return {
        "general.architecture": architecture,
        "general.type": "model",
        "general.name": name,
        **{f"{architecture}.{key}": value for key, value in values.items()},
        "general.quantization_version": 2,
    }


def _experts(c: _Config, arch: Architecture) -> dict[str, Any]:
    """Keys of a mixture of experts; none for a config.json without experts."""
    count = next(
        (name for name in ("num_experts", "num_local_experts", "n_routed_experts") if c.values.get(name)), None
    )
    if count is None or c.values.get("enable_moe_block") is False:
        return {}
    used = "top_k_experts" if c.values.get("top_k_experts") else "num_experts_per_tok"
    found = {"expert_count": c.number(count, int), "expert_used_count": c.number(used, int)}
    others = {
        "expert_feed_forward_length": "moe_intermediate_size",
        "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
        "expert_shared_count": "n_shared_experts",
        "leading_dense_block_count": "first_k_dense_replace",
    }
    if arch.experts == "all" and not c.values.get("moe_intermediate_size"):
        others["expert_feed_forward_length"] = "intermediate_size"
    if arch.gating == "sigmoid":
        found |= {"expert_gating_func": 2, "expert_weights_norm": bool(c.values.get("norm_topk_prob"))}
        found["expert_weights_scale"] = c.number("routed_scaling_factor", float, 1.0)
    return found | {key: c.number(name, int) for key, name in others.items() if c.values.get(name)}


def notes(architecture: str, config: dict[str, Any]) -> list[str]:
    """What the converted model will compute differently, a sentence each."""
    window = config.get("sliding_window")
    windowed = (
        window
        and config.get("use_sliding_window", architecture in ("llama", "phi3"))
        and not ARCHITECTURES[architecture].window_period
    )
    return (
        [
            f"config.json asks for attention within {window} tokens, which llama.cpp does not compute for "
            f"{architecture}: beyond {window} tokens the answers of the two files differ."
        ]
        if windowed
        else []
    )


def rope_parameters(config: dict[str, Any]) -> dict[str, Any]:
    """The rotary settings of full attention, in transformers' old places (rope_theta, rope_scaling) and new one."""
    found = config.get("rope_parameters")
    found = found if isinstance(found, dict) else {}
    found = found.get("full_attention") if isinstance(found.get("full_attention"), dict) else found
    old = config.get("rope_scaling")
    old = old if isinstance(old, dict) else {}
    kind = found.get("rope_type") or old.get("rope_type") or old.get("type")
    outside = {key: config.get(key) for key in ("rope_theta", "original_max_position_embeddings")}
    return {**outside, **old, **found, "rope_type": kind}


def _scaling(rope: dict[str, Any], context: int) -> dict[str, Any]:
    kind = rope["rope_type"]
    if kind in (None, "default", "llama3", "proportional"):
        return {}
    if kind in LONG:
        return {"rope.scaling.attn_factor": _attention_factor(rope, context)}
    if kind not in ("linear", "yarn"):
        raise UserError(
            f"config.json has RoPE scaling of type {str(kind)[:40]!r}; only linear, yarn and llama3 can be converted."
        )
    scale = _Config(rope)
    found = {"rope.scaling.type": kind, "rope.scaling.factor": scale.number("factor", float)}
    if kind == "yarn":
        original = rope.get("original_max_position_embeddings") or context
        found["rope.scaling.original_context_length"] = int(original)
        if rope.get("attention_factor"):
            found["rope.scaling.attn_factor"] = scale.number("attention_factor", float)
        for ours, theirs, usual in (("yarn_beta_fast", "beta_fast", 32), ("yarn_beta_slow", "beta_slow", 1)):
            if rope.get(theirs) not in (None, usual):
                found[f"rope.scaling.{ours}"] = scale.number(theirs, float)
    return found


def _attention_factor(rope: dict[str, Any], context: int) -> float:
    """Of Phi 3's long contexts: sqrt(1 + log(factor) / log(original context)), unless the folder says another."""
    scale = _Config(rope)
    original = scale.number("original_max_position_embeddings", int, context)
    factor = max(1.0, context / original)
    usual = math.sqrt(1 + math.log(factor) / math.log(original)) if original > 1 else 1.0
    return scale.number("attention_factor", float, usual)


def rope_factors(architecture: str, config: dict[str, Any]) -> dict[str, np.ndarray]:
    """The tensors with divisors of the angles, float32 [dimensions that turn / 2]: Llama 3's scheme (rope_freqs), or
    those of short and of long contexts; {} where there are none."""
    names, rope = ARCHITECTURES[architecture].rope_factors, rope_parameters(config)
    if rope["rope_type"] in LONG and len(names) > 1:
        lists = [rope.get(f"{name.rpartition('_')[2]}_factor") for name in names]
        if not all(isinstance(found, list) and found for found in lists):
            raise UserError("config.json has rope_scaling without its lists short_factor and long_factor.")
        return {f"{name}.weight": np.array(found, np.float32) for name, found in zip(names, lists)}
    if rope["rope_type"] == "proportional" and names:
        pairs = int(config.get("global_head_dim") or 512) // 2
        turned = int((rope.get("partial_rotary_factor") or 1.0) * pairs)
        return {f"{names[0]}.weight": np.where(np.arange(pairs) < turned, 1, 1e30).astype(np.float32)}
    if rope["rope_type"] != "llama3" or not names:
        return {}
    return {f"{names[0]}.weight": _llama3(config, rope)}


def _llama3(config: dict[str, Any], rope: dict[str, Any]) -> np.ndarray:
    c = _Config(rope)
    size = _Config(config).number("head_dim", int, int(config["hidden_size"]) // int(config["num_attention_heads"]))
    low, high = c.number("low_freq_factor", float, 1.0), c.number("high_freq_factor", float, 4.0)
    factor, original = c.number("factor", float, 8.0), c.number("original_max_position_embeddings", int, 8192)
    wavelength = 2 * np.pi * c.number("rope_theta", float, 10_000.0) ** (np.arange(0, size, 2) / size)
    smooth = np.clip((original / wavelength - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)
