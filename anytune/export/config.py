"""config.json and generation_config.json of a GGUF model, in the keys that transformers and MLX both read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from anytune.errors import UserError
from anytune.gguf import GGUF
from anytune.model.config import Config
from anytune.text.tokenizer import Tokenizer

DTYPES = {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}
ACTIVATIONS = {"silu": "silu", "gelu": "gelu_pytorch_tanh", "clamped": "silu"}
FACTOR_RANGE = (1.0, 4.0)  # low and high frequency factor of every published Llama 3


def config_json(base: GGUF, c: Config, dtype: str) -> dict[str, Any]:
    """The configuration as a JSON object. dtype: bf16, f16 or f32. UserError for what it cannot express."""
    if c.rope_size != c.head_size and not c.arch.partial_rope:
        raise UserError(
            f"{base.path.name} rotates {c.rope_size} of {c.head_size} dimensions of a head, which transformers' "
            "class for it does not support."
        )
    found: dict[str, Any] = {
        "architectures": [c.arch.model_class],
        "model_type": c.arch.kind,
        "vocab_size": c.vocabulary,
        "hidden_size": c.width,
        "intermediate_size": c.hidden,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.n_kv_heads,
        "head_dim": c.head_size,
        "max_position_embeddings": c.context,
        "rms_norm_eps": _short(c.eps),
        "rope_theta": _short(c.rope_base),
        "tie_word_embeddings": c.tied,
        "attention_dropout": 0.0,
        "use_cache": True,
        "torch_dtype": DTYPES[dtype],
        **_tokens(base),
    }
    found[c.arch.activation_key] = ACTIVATIONS[c.arch.activation]
    if c.arch.attention_bias:
        found["attention_bias"] = "blk.0.attn_q.bias" in base.tensors
    found |= c.arch.config(c)
    scaling = _scaling(base, c)
    if scaling and "rope_parameters" in found:
        whole = found["rope_parameters"]
        whole.get("full_attention", whole).update(scaling)
    elif scaling:
        found["rope_scaling"] = scaling
    return found


def generation_json(base: GGUF) -> dict[str, Any]:
    """What generate() has to know: where to begin and end."""
    found = {key: value for key, value in _tokens(base).items() if value is not None}
    ends = sorted(Tokenizer(base.metadata).eog)
    return {**found, "eos_token_id": ends if len(ends) > 1 else found.get("eos_token_id")}


def _tokens(base: GGUF) -> dict[str, int | None]:
    tokenizer = Tokenizer(base.metadata)
    return {"bos_token_id": tokenizer.bos, "eos_token_id": tokenizer.eos, "pad_token_id": tokenizer.padding}


def _scaling(base: GGUF, c: Config) -> dict[str, Any] | None:
    if "rope_factors_long.weight" in base.tensors:
        return {
            "rope_type": "longrope",
            "type": "longrope",
            "short_factor": base.float32("rope_factors_short.weight").reshape(-1).tolist(),
            "long_factor": base.float32("rope_factors_long.weight").reshape(-1).tolist(),
            "attention_factor": c.scaling.attention_factor,
        }
    factors = base.float32("rope_freqs.weight").astype(np.float64) if "rope_freqs.weight" in base.tensors else None
    if c.scaling.kind != "none":
        found = {"rope_type": c.scaling.kind, "factor": c.scaling.factor}
        if c.scaling.kind == "yarn":
            found["original_max_position_embeddings"] = c.scaling.original_context
        if c.scaling.attention_factor != 1.0 or factors is not None:
            raise UserError(f"{base.path.name} scales its rotary angles in a way that config.json cannot express.")
        return found
    if factors is None or np.allclose(factors, 1):
        return None
    if c.arch.still:  # pairs are turned as they are, or not at all
        return {"partial_rotary_factor": float((factors.reshape(-1) == 1).mean())}
    return _llama3(base, c, factors.reshape(-1))


def _llama3(base: GGUF, c: Config, factors: np.ndarray) -> dict[str, Any]:
    """The scheme whose divisors are `factors` [head_size / 2], of which the file keeps only the results."""
    low, high = FACTOR_RANGE
    factor = float(np.float32(factors.max()))
    wavelength = 2 * np.pi * c.rope_base ** (np.arange(0, c.rope_size, 2) / c.rope_size)
    for original in (8192, *(1 << n for n in range(4, 21))):
        smooth = np.clip((original / wavelength - low) / (high - low), 0, 1)
        if np.allclose(factors, 1 / ((1 - smooth) / factor + smooth), rtol=1e-4):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": original,
            }
    raise UserError(
        f"{base.path.name} has rotary factors that do not follow Llama 3's scheme: config.json cannot express them."
    )


def _short(x: float) -> float:
    """The decimal number that a float32 of the file was written from."""
    return float(str(np.float32(x)))


def shard_name(number: int, count: int) -> str:
    """The name of a weights file, as transformers numbers them."""
    return "model.safetensors" if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"


def index_json(sizes: Sequence[tuple[str, int, str]]) -> dict[str, Any]:
    """model.safetensors.index.json. sizes: (weight, bytes, file)."""
    return {"metadata": {"total_size": sum(size for _, size, _ in sizes)}, "weight_map": {n: f for n, _, f in sizes}}
