"""Files of Qwen 3.5's kind (three of four layers a gated delta net) with random weights in GGUF blocks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from qwen3 import blocks

# width, hidden, layers, heads, key heads, head size; then of the delta net: key heads, value heads, their size
SHAPES = {"qwen3.5-2b": (2048, 6144, 24, 8, 2, 256, 16, 16, 128), "tiny": (256, 512, 4, 4, 2, 64, 2, 4, 32)}
VOCABULARY, PERIOD, KERNEL = 248_320, 4, 4


def write_model(path: Path, shape: str, kind: str = "Q8_0", vocabulary: int = VOCABULARY) -> None:
    """A whole model file without a tokenizer."""
    from anytune.gguf import write_gguf

    width, hidden, layers, heads, keys, size, net_keys, net_values, net_size = SHAPES[shape]
    inner, columns = net_values * net_size, (2 * net_keys + net_values) * net_size
    rng, pools = np.random.default_rng(0), {}

    def matrix(name: str, rows: int, inputs: int):
        def draw():
            if inputs not in pools:
                pools[inputs] = blocks(rng, kind, inputs)
            pool = pools[inputs]
            return np.take(pool, (np.arange(rows) + rng.integers(len(pool))) % len(pool), axis=0)

        return name, (rows, inputs), kind, draw

    def vector(name: str, values: np.ndarray):
        return name, values.shape, "F32", values.astype(np.float32)

    tensors = [matrix("token_embd.weight", vocabulary, width), vector("output_norm.weight", np.ones(width))]
    for i in range(layers):
        b = f"blk.{i}."
        tensors += [vector(b + "attn_norm.weight", np.ones(width))]
        tensors += [vector(b + "post_attention_norm.weight", np.ones(width))]
        if (i + 1) % PERIOD:
            tensors += [
                matrix(b + "attn_qkv.weight", columns, width),
                matrix(b + "attn_gate.weight", inner, width),
                matrix(b + "ssm_beta.weight", net_values, width),
                matrix(b + "ssm_alpha.weight", net_values, width),
                matrix(b + "ssm_out.weight", width, inner),
                vector(b + "ssm_conv1d.weight", 0.5 * rng.standard_normal((columns, KERNEL))),
                vector(b + "ssm_dt.bias", np.ones(net_values)),
                vector(b + "ssm_a", -rng.uniform(0.01, 16, net_values)),
                vector(b + "ssm_norm.weight", np.ones(net_size)),
            ]
        else:
            tensors += [
                matrix(b + "attn_q.weight", 2 * heads * size, width),
                matrix(b + "attn_k.weight", keys * size, width),
                matrix(b + "attn_v.weight", keys * size, width),
                matrix(b + "attn_output.weight", width, heads * size),
                vector(b + "attn_q_norm.weight", np.ones(size)),
                vector(b + "attn_k_norm.weight", np.ones(size)),
            ]
        tensors += [
            matrix(b + "ffn_gate.weight", hidden, width),
            matrix(b + "ffn_up.weight", hidden, width),
            matrix(b + "ffn_down.weight", width, hidden),
        ]
    own = {
        "block_count": layers,
        "context_length": 262_144,
        "embedding_length": width,
        "feed_forward_length": hidden,
        "attention.head_count": heads,
        "attention.head_count_kv": keys,
        "attention.key_length": size,
        "attention.value_length": size,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "rope.freq_base": 1e7,
        "rope.dimension_count": size // 4,
        "rope.dimension_sections": [11, 11, 10, 0],
        "ssm.conv_kernel": KERNEL,
        "ssm.inner_size": inner,
        "ssm.state_size": net_size,
        "ssm.time_step_rank": net_values,
        "ssm.group_count": net_keys,
        "full_attention_interval": PERIOD,
    }
    metadata = {f"qwen35.{key}": value for key, value in own.items()}
    write_gguf(path, {"general.architecture": "qwen35", "general.name": f"Random {shape}", **metadata}, tensors)
