"""GGUF files of known models' shapes without their weights: sparse files, for planners that read headers alone."""

from __future__ import annotations

import struct
from pathlib import Path

import tinyllama

from anytune.gguf import BLOCKS

ALIGNMENT, UINT32, STRING = 32, 4, 8
# name -> (architecture, layers, heads, key/value heads, vocabulary, {part of a layer: (outputs, inputs)})
SHAPES = {
    "TinyLlama-1.1B": ("llama", tinyllama.LAYERS, tinyllama.HEADS, tinyllama.KEY_HEADS, tinyllama.VOCABULARY,
                       tinyllama.LAYER),
    "Mistral-7B": ("llama", 32, 32, 8, 32768, {
        "attn_q": (4096, 4096), "attn_k": (1024, 4096), "attn_v": (1024, 4096), "attn_output": (4096, 4096),
        "ffn_gate": (14336, 4096), "ffn_up": (14336, 4096), "ffn_down": (4096, 14336)}),
    "Phi-3-mini": ("phi3", 32, 32, 32, 32064, {
        "attn_qkv": (9216, 3072), "attn_output": (3072, 3072), "ffn_up": (16384, 3072), "ffn_down": (3072, 8192)}),
}  # fmt: skip


def write(name: str, path: Path, kind: str = "Q4_0") -> Path:
    """Every matrix in `kind`; the file's data is a hole."""
    arch, layers, heads, keys, vocabulary, parts = SHAPES[name]
    width = parts["attn_output"][0]
    tensors = {f"blk.{i}.{part}.weight": shape for i in range(layers) for part, shape in parts.items()}
    tensors |= {"token_embd.weight": (vocabulary, width), "output.weight": (vocabulary, width)}
    metadata = {"general.architecture": arch, f"{arch}.block_count": layers, f"{arch}.attention.head_count": heads,
                f"{arch}.attention.head_count_kv": keys, f"{arch}.embedding_length": width}  # fmt: skip
    head = bytearray(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata)))
    for key, value in metadata.items():
        head += text(key)
        head += struct.pack("<I", STRING) + text(value) if isinstance(value, str) else struct.pack("<II", UINT32, value)
    at = 0
    for tensor, (n, k) in tensors.items():
        head += text(tensor) + struct.pack("<IQQIQ", 2, k, n, BLOCKS[kind].id, at)
        at += -(-n * BLOCKS[kind].row_bytes(k) // ALIGNMENT) * ALIGNMENT
    with open(path, "wb") as file:
        file.write(head)
        file.truncate(-(-len(head) // ALIGNMENT) * ALIGNMENT + at)
    return path


def text(words: str) -> bytes:
    return struct.pack("<Q", len(words)) + words.encode()
