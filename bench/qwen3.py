"""Files of Qwen3's shape with random weights in GGUF blocks, for benchmarks: the weights are noise, sizes, types and
layout are what counts.

Blocks are drawn once and dealt out from different places of one pool, so that a file of billions of weights takes
seconds.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

SHAPES = {  # width, hidden, layers, heads, key heads, head size
    "qwen3-0.6b": (1024, 3072, 28, 16, 8, 128),
    "qwen3-1.7b": (2048, 6144, 28, 16, 8, 128),
    "qwen3-8b": (4096, 12288, 36, 32, 8, 128),
    "small": (512, 1536, 12, 4, 2, 128),
    "tiny": (256, 512, 2, 4, 2, 64),
}
POOL = 32 << 20  # bytes
# place, deviation
SCALES = {"Q8_0": ((0, 73.9),), "Q4_0": ((0, 4.6),), "Q4_K": ((0, 4.6 * 32.0), (2, 4.6 * 32.0 / 7.5))}


def blocks(rng: np.random.Generator, kind: str, columns: int):
    """uint8 [n, row_bytes] rows of random blocks with float16 scales that keep activations near 1."""
    from anytune.gguf.blocks import BLOCKS

    block = BLOCKS[kind]
    count = columns // block.block_size
    pool = rng.integers(0, 256, (POOL // (count * block.type_size), count, block.type_size), dtype=np.uint8)
    for at, deviation in SCALES[kind]:
        pool[:, :, at : at + 2] = np.frombuffer(np.float16(1 / (deviation * columns**0.5)).tobytes(), np.uint8)
    return pool.reshape(len(pool), -1)


def gflop_per_token(
    shape: str, length: int, with_loss: float = 0.5, rank: int = 16, vocabulary: int = 151_936
) -> float:
    """The arithmetic of a LoRA step on examples of `length` tokens: two products with every frozen matrix, three with
    every factor, causal attention forward and twice that backward, the head where there is loss. Nothing made again
    counts."""
    width, hidden, layers, heads, keys, size = SHAPES[shape]
    linears = (
        (width, heads * size),
        (width, keys * size),
        (width, keys * size),
        (heads * size, width),
        (width, hidden),
        (width, hidden),
        (hidden, width),
    )
    layer = sum(4 * a * b + 6 * rank * (a + b) for a, b in linears) + 6 * length * heads * size
    return (layers * layer + 4 * width * vocabulary * with_loss) / 1e9


def write_model(path: Path, shape: str, kind: str = "Q8_0", vocabulary: int = 151_936, context: int = 40_960) -> None:
    """A whole model file without a tokenizer."""
    from anytune.gguf import write_gguf

    width, hidden, layers, heads, keys, size = SHAPES[shape]
    rng, pools = np.random.default_rng(0), {}

    def matrix(name: str, rows: int, columns: int):
        def draw():
            if columns not in pools:
                pools[columns] = blocks(rng, kind, columns)
            pool = pools[columns]
            return np.take(pool, (np.arange(rows) + rng.integers(len(pool))) % len(pool), axis=0)

        return name, (rows, columns), kind, draw

    def norm(name: str, n: int):
        return name, (n,), "F32", np.ones(n, np.float32)

    tensors = [matrix("token_embd.weight", vocabulary, width), norm("output_norm.weight", width)]
    for i in range(layers):
        b = f"blk.{i}."
        tensors += [
            norm(b + "attn_norm.weight", width),
            norm(b + "ffn_norm.weight", width),
            norm(b + "attn_q_norm.weight", size),
            norm(b + "attn_k_norm.weight", size),
            matrix(b + "attn_q.weight", heads * size, width),
            matrix(b + "attn_k.weight", keys * size, width),
            matrix(b + "attn_v.weight", keys * size, width),
            matrix(b + "attn_output.weight", width, heads * size),
            matrix(b + "ffn_gate.weight", hidden, width),
            matrix(b + "ffn_up.weight", hidden, width),
            matrix(b + "ffn_down.weight", width, hidden),
        ]
    write_gguf(
        path,
        {
            "general.architecture": "qwen3",
            "general.name": f"Random {shape}",
            "qwen3.block_count": layers,
            "qwen3.context_length": context,
            "qwen3.embedding_length": width,
            "qwen3.feed_forward_length": hidden,
            "qwen3.attention.head_count": heads,
            "qwen3.attention.head_count_kv": keys,
            "qwen3.attention.key_length": size,
            "qwen3.attention.value_length": size,
            "qwen3.attention.layer_norm_rms_epsilon": 1e-6,
            "qwen3.rope.freq_base": 1e6,
        },
        tensors,
    )
