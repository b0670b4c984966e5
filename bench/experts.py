"""Files of Qwen3-30B-A3B's shape with random weights in GGUF blocks, of any number of its layers; see qwen3.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import qwen3

SHAPES = {  # width, experts, used, hidden of an expert, layers, heads, key heads, head size, vocabulary
    "qwen3-30b-a3b": (2048, 128, 8, 768, 48, 32, 4, 128, 151_936),
    "small": (512, 32, 4, 256, 6, 8, 2, 64, 8_192),
    "tiny": (256, 8, 3, 256, 2, 4, 2, 64, 512),
}
PORTION = 8192  # rows that are dealt out at a time


def gflop_per_token(shape: str, layers: int, length: int, with_loss: float = 0.5, rank: int = 16) -> float:
    """As qwen3.gflop_per_token(), with LoRA on attention."""
    width, experts, used, hidden, _, heads, keys, size, vocabulary = SHAPES[shape]
    linears = ((width, heads * size), (width, keys * size), (width, keys * size), (heads * size, width))
    layer = sum(4 * a * b + 6 * rank * (a + b) for a, b in linears) + 6 * length * heads * size
    layer += 4 * width * (experts + 3 * used * hidden)
    return (layers * layer + 4 * width * vocabulary * with_loss) / 1e9


def write_model(path: Path, shape: str, layers: int | None = None, kind: str = "Q4_K", context: int = 40_960) -> None:
    """A whole model file without a tokenizer."""
    from anytune.gguf import write_gguf

    width, experts, used, hidden, all_layers, heads, keys, size, vocabulary = SHAPES[shape]
    layers, rng, pools = layers or all_layers, np.random.default_rng(0), {}

    def matrix(name: str, *dims: int):
        rows, columns = int(np.prod(dims[:-1])), dims[-1]

        def portions():
            if columns not in pools:
                pools[columns] = qwen3.blocks(rng, kind, columns)
            pool = pools[columns]
            for low in range(0, rows, PORTION):
                count = min(PORTION, rows - low)
                yield np.take(pool, (np.arange(count) + rng.integers(len(pool))) % len(pool), axis=0)

        return name, dims, kind, portions

    def plain(name: str, *dims: int):
        values = rng.standard_normal(dims) * dims[-1] ** -0.5 if len(dims) > 1 else np.ones(dims)
        return name, dims, "F32", values.astype(np.float32)

    tensors = [matrix("token_embd.weight", vocabulary, width), plain("output_norm.weight", width)]
    tensors += [matrix("output.weight", vocabulary, width)]
    for i in range(layers):
        b = f"blk.{i}."
        tensors += [
            plain(b + "attn_norm.weight", width),
            plain(b + "ffn_norm.weight", width),
            plain(b + "attn_q_norm.weight", size),
            plain(b + "attn_k_norm.weight", size),
            matrix(b + "attn_q.weight", heads * size, width),
            matrix(b + "attn_k.weight", keys * size, width),
            matrix(b + "attn_v.weight", keys * size, width),
            matrix(b + "attn_output.weight", width, heads * size),
            plain(b + "ffn_gate_inp.weight", experts, width),
            matrix(b + "ffn_gate_exps.weight", experts, hidden, width),
            matrix(b + "ffn_up_exps.weight", experts, hidden, width),
            matrix(b + "ffn_down_exps.weight", experts, width, hidden),
        ]
    own = {
        "block_count": layers,
        "context_length": context,
        "embedding_length": width,
        "feed_forward_length": 3 * width,
        "expert_count": experts,
        "expert_used_count": used,
        "expert_feed_forward_length": hidden,
        "attention.head_count": heads,
        "attention.head_count_kv": keys,
        "attention.key_length": size,
        "attention.value_length": size,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "rope.freq_base": 1e6,
    }
    names = {"general.architecture": "qwen3moe", "general.name": f"Random {shape}, {layers} layers"}
    write_gguf(path, names | {f"qwen3moe.{key}": value for key, value in own.items()}, tensors)
