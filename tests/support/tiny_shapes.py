"""What the tiny models of tiny.py are: a Shape each."""

from __future__ import annotations

from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Shape:
    """What makes one tiny model. Sizes are elements; `meta` holds the architecture's further metadata."""

    arch: str
    layers: int = 2
    width: int = 64
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    ff: int = 96
    tied: bool = False
    bias: bool = False  # q, k and v have biases (qwen2)
    qk_norm: bool = False  # per-head norms of q and k (qwen3, gemma3)
    wide_norm: bool = False  # norms of all queries and of all keys, and behind both parts, not before (olmo2)
    post_norm: bool = False  # norms after attention and MLP (gemma3)
    spm: bool = False  # SentencePiece-style vocabulary instead of byte-level BPE
    pre: str = "smollm"
    rope_base: float = 10000.0
    factors: bool = False  # rope_freqs.weight, as Llama 3.1 files have it
    sub_norm: bool = False  # norms before the last product of attention and MLP (bitnet)
    fused: bool = False  # queries, keys and values are one matrix, gate and up are another (phi3)
    long: bool = False  # rope_factors_short.weight and rope_factors_long.weight (phi3)
    meta: dict = field(default_factory=dict)

    @property
    def vocab(self) -> int:
        return 320


LLAMA3 = dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)


def linear(factor: float) -> dict:
    """The metadata of positions that are divided by so much."""
    return {"rope.scaling.type": "linear", "rope.scaling.factor": factor}


def yarn(factor: float, original: int, **more) -> dict:
    """The metadata of YaRN over a context of `original` tokens; more: further ones of `rope.scaling`."""
    own = {"type": "yarn", "factor": factor, "original_context_length": original} | more
    return {f"rope.scaling.{key}": value for key, value in own.items()}


def sigmoids(scale: float) -> dict:
    """The metadata of routers whose weights are sigmoids, made to sum to `scale`."""
    return {"expert_gating_func": 2, "expert_weights_norm": True, "expert_weights_scale": scale}


MOE = {"expert_count": 8, "expert_used_count": 3, "expert_feed_forward_length": 32}

GEMMA3 = Shape(
    "gemma3",
    layers=7,
    kv_heads=1,
    qk_norm=True,
    post_norm=True,
    tied=True,
    spm=True,
    rope_base=1e6,
    meta={"attention.sliding_window": 8},
)

GEMMA4 = Shape(
    "gemma4",
    tied=True,
    spm=True,
    rope_base=1e6,
    meta={
        "attention.sliding_window": 8,
        "attention.key_length_swa": 16,
        "attention.value_length_swa": 16,
        "rope.dimension_count": 32,
        "rope.dimension_count_swa": 16,
        "rope.freq_base_swa": 1e4,
        "attention.shared_kv_layers": 0,
        "final_logit_softcapping": 4.0,
        "embedding_length_per_layer_input": 0,
    },
)

PHI3 = Shape(
    "phi3",
    head_dim=16,
    spm=True,
    fused=True,
    long=True,
    meta={
        "context_length": 512,
        "rope.dimension_count": 12,
        "rope.scaling.original_context_length": 256,
        "rope.scaling.attn_factor": 1.2,
        "attention.sliding_window": 8,  # which llama.cpp leaves out
    },
)

QWEN35 = Shape(
    "qwen35",
    layers=5,
    pre="qwen2",
    rope_base=1e6,
    meta={
        "ssm.conv_kernel": 4,
        "ssm.inner_size": 64,
        "ssm.state_size": 16,
        "ssm.time_step_rank": 4,
        "ssm.group_count": 2,
        "full_attention_interval": 4,
        "rope.dimension_count": 16,
        "rope.dimension_sections": [3, 3, 2, 0],
    },
)

LFM2 = Shape(
    "lfm2",
    layers=3,
    head_dim=16,
    tied=True,
    qk_norm=True,
    pre="lfm2",
    rope_base=1e6,
    meta={"shortconv.l_cache": 3, "attention.head_count_kv": [0, 2, 0]},
)

LATENT = MOE | {
    "attention.kv_lora_rank": 32,
    "attention.key_length": 48,
    "attention.value_length": 32,
    "attention.key_length_mla": 48,
    "attention.value_length_mla": 32,
    "attention.layer_norm_rms_epsilon": 1e-6,  # transformers has no other for norms of latents
    "rope.dimension_count": 16,
    "leading_dense_block_count": 1,
    "expert_shared_count": 1,
}


def with_meta(base: Shape, meta: dict, **changes) -> Shape:
    return replace(base, meta=base.meta | meta, **changes)


SHAPES = {
    "llama": Shape("llama"),
    "llama-tied": Shape("llama", heads=2, kv_heads=1, tied=True, rope_base=100000.0),
    "llama-spm": Shape("llama", spm=True, kv_heads=4, head_dim=16),
    "llama3": Shape("llama", pre="llama-bpe", rope_base=500000.0, factors=True),
    "llama-linear": Shape("llama", meta=linear(4.0)),
    "llama-yarn": Shape("llama", meta=yarn(4.0, 64)),
    "mistral": Shape("llama", heads=2, kv_heads=2, spm=True, rope_base=1e6),  # head_dim is not width / heads
    "qwen2": Shape("qwen2", bias=True, tied=True, pre="qwen2", head_dim=16, rope_base=1e6),
    "qwen3": Shape("qwen3", qk_norm=True, pre="qwen2", rope_base=1e6),
    "qwen3-tied": Shape("qwen3", qk_norm=True, tied=True, pre="qwen2", heads=2, rope_base=1e6),
    "gemma2": Shape(
        "gemma2",
        layers=4,
        head_dim=16,
        post_norm=True,
        tied=True,
        spm=True,
        meta={"attention.sliding_window": 8, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 5.0},
    ),
    "gemma3": GEMMA3,
    "gemma4": with_meta(  # as E2B: own embeddings, the last three layers read keys of others
        GEMMA4,
        {
            "attention.sliding_window_pattern": [True, False, True, False, True, True, False],
            "attention.shared_kv_layers": 3,
            "embedding_length_per_layer_input": 32,
            "feed_forward_length": [96] * 4 + [192] * 3,
        },
        layers=7,
        kv_heads=1,
    ),
    "gemma4-dense": with_meta(  # as 31B: values are keys in full layers, which have fewer heads
        GEMMA4,
        {"attention.sliding_window_pattern": [True] * 3 + [False], "attention.head_count_kv": [2, 2, 2, 1]},
        layers=4,
    ),
    "gemma4-experts": with_meta(  # as 26B-A4B: experts beside the dense feed-forward
        GEMMA4,
        MOE | {"attention.sliding_window_pattern": [True, True, False], "attention.head_count_kv": [2, 2, 1]},
        layers=3,
    ),
    "gemma3-linear": with_meta(GEMMA3, linear(8.0), layers=6, kv_heads=2),
    "smollm3": Shape("smollm3", layers=5, tied=True, pre="smollm", rope_base=2e6),
    "granite": Shape(
        "granite",
        layers=3,
        tied=True,
        meta={"embedding_scale": 1.5, "residual_scale": 0.5, "attention.scale": 0.1, "logit_scale": 2.0},
    ),
    "mistral3": Shape(
        "mistral3",
        heads=2,
        spm=True,
        rope_base=1e6,
        meta=yarn(16.0, 16, yarn_beta_fast=32.0, yarn_beta_slow=1.0, yarn_log_multiplier=1.0)
        | {"attention.temperature_scale": 0.4},
    ),
    "olmo2": Shape("olmo2", kv_heads=4, head_dim=16, pre="dbrx", rope_base=5e5, wide_norm=True),
    "olmo3": Shape(
        "olmo2",
        layers=4,
        head_dim=16,
        pre="dbrx",
        rope_base=5e5,
        wide_norm=True,
        meta={"attention.sliding_window": 8, "attention.sliding_window_pattern": [True] * 3 + [False]} | yarn(8.0, 32),
    ),
    "phi3": PHI3,
    "phi3-long": with_meta(PHI3, {"rope.scaling.original_context_length": 16}),
    "qwen3moe": Shape("qwen3moe", qk_norm=True, pre="qwen2", rope_base=1e6, ff=192, meta=MOE),
    "gpt-oss": Shape(
        "gpt-oss",
        layers=3,
        ff=32,
        pre="gpt-4o",
        rope_base=1.5e5,
        meta=MOE | {"attention.sliding_window": 8} | yarn(32.0, 64),
    ),
    "glm4moe": Shape(
        "glm4moe",
        layers=3,
        pre="glm4",
        rope_base=1e6,
        meta=MOE
        | {"rope.dimension_count": 16, "leading_dense_block_count": 1, "expert_shared_count": 2}
        | sigmoids(1.5),
    ),
    "mixtral": Shape("llama", spm=True, ff=64, meta={"expert_count": 4, "expert_used_count": 2}),
    "qwen35moe": with_meta(QWEN35, MOE | {"expert_shared_feed_forward_length": 64}, arch="qwen35moe"),
    "bitnet": Shape("bitnet", head_dim=16, kv_heads=4, tied=True, spm=True, sub_norm=True),
    "lfm2": LFM2,
    "lfm2moe": with_meta(LFM2, MOE | {"leading_dense_block_count": 1, "expert_gating_func": 2}, arch="lfm2moe"),
    "deepseek2": Shape(  # as GLM 4.7 Flash
        "deepseek2",
        layers=3,
        kv_heads=1,
        pre="glm4",
        rope_base=1e6,
        meta=LATENT | {"attention.q_lora_rank": 32} | sigmoids(1.8),
    ),
    "deepseek3": Shape(
        "deepseek2",
        kv_heads=1,
        pre="deepseek-v3",
        meta=LATENT
        | {
            "attention.q_lora_rank": 64,
            "attention.value_length_mla": 48,
            "expert_group_count": 4,
            "expert_group_used_count": 2,
        }
        | sigmoids(2.5)
        | yarn(16.0, 16, yarn_log_multiplier=0.1),
    ),
    "deepseek2-old": Shape(  # as first files of V2 Lite: no latent of queries, one matrix for keys and values
        "deepseek2",
        kv_heads=4,
        head_dim=48,
        pre="deepseek-llm",
        meta={key: value for key, value in LATENT.items() if not key.endswith(("key_length", "value_length", "mla"))}
        | {"attention.q_lora_rank": 0, "attention.value_length": 32},
    ),
    "qwen35": QWEN35,
    "qwen35-wide": with_meta(
        QWEN35, {"ssm.time_step_rank": 6, "ssm.inner_size": 96, "full_attention_interval": 2}, layers=4, tied=True
    ),
}


# one of each architecture: what every test of an architecture runs over
EACH = tuple({shape.arch: name for name, shape in reversed(SHAPES.items())}.values())[::-1]


def has_experts(name: str) -> bool:
    return "expert_count" in SHAPES[name].meta


DENSE = tuple(name for name in sorted(SHAPES) if not has_experts(name))
MIXTURES = tuple(name for name in sorted(SHAPES) if has_experts(name))
