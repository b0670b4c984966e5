"""A model file of Qwen3's shape whose tensors are holes: enough for what reads only headers."""

from __future__ import annotations

import struct
from pathlib import Path

from anytune.gguf import BLOCKS

ALIGNMENT = 32
STRING, UINT32, FLOAT32 = 8, 4, 6


def write(path: Path, kind: str, width=2048, hidden=6144, layers=28, heads=16, keys=8, size=128, words=151_936) -> Path:
    """Every matrix in blocks of type `kind`. The defaults are Qwen3-1.7B's."""
    matrices = {
        "attn_q": (heads * size, width),
        "attn_k": (keys * size, width),
        "attn_v": (keys * size, width),
        "attn_output": (width, heads * size),
        "ffn_gate": (hidden, width),
        "ffn_up": (hidden, width),
        "ffn_down": (width, hidden),
    }
    norms = {"attn_norm": width, "ffn_norm": width, "attn_q_norm": size, "attn_k_norm": size}
    tensors = {"token_embd.weight": (words, width), "output_norm.weight": (width,)}
    for i in range(layers):
        tensors |= {f"blk.{i}.{name}.weight": shape for name, shape in matrices.items()}
        tensors |= {f"blk.{i}.{name}.weight": (n,) for name, n in norms.items()}
    values = {
        "block_count": layers,
        "attention.head_count": heads,
        "attention.head_count_kv": keys,
        "attention.key_length": size,
        "attention.value_length": size,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "embedding_length": width,
        "feed_forward_length": hidden,
        "context_length": 40_960,
        "rope.freq_base": 1e6,
        "vocab_size": words,
    }
    head = bytearray(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(values) + 1))
    head += _text("general.architecture") + struct.pack("<I", STRING) + _text("qwen3")
    for key, value in values.items():
        kind_of = struct.pack("<If", FLOAT32, value) if isinstance(value, float) else struct.pack("<II", UINT32, value)
        head += _text(f"qwen3.{key}") + kind_of
    at = 0
    for name, shape in tensors.items():
        block = BLOCKS[kind if len(shape) == 2 else "F32"]
        head += _text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *reversed(shape), block.id, at)
        rows = shape[0] if len(shape) == 2 else 1
        at += -(-rows * block.row_bytes(shape[-1]) // ALIGNMENT) * ALIGNMENT
    with open(path, "wb") as file:
        file.write(head)
        file.truncate(-(-len(head) // ALIGNMENT) * ALIGNMENT + at)
    return path


def _text(words: str) -> bytes:
    return struct.pack("<Q", len(words)) + words.encode()
