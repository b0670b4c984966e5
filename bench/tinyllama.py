"""A file of TinyLlama-1.1B's shape with random Q4_0 weights, and text for its tokenizer: for bench/memory.py.

22 layers, width 2048, feed-forward 5632, 32 heads, 4 key/value heads, 32,000 tokens (SentencePiece's kind), a
head of its own. The weights are noise; sizes, types and layout are what counts here.
"""

from __future__ import annotations

import itertools
import json
import string
from pathlib import Path

import numpy as np

WIDTH, HIDDEN, LAYERS, HEADS, KEY_HEADS, VOCABULARY = 2048, 5632, 22, 32, 4, 32000
KEYS = WIDTH // HEADS * KEY_HEADS
LAYER = {
    "attn_q": (WIDTH, WIDTH),
    "attn_k": (KEYS, WIDTH),
    "attn_v": (KEYS, WIDTH),
    "attn_output": (WIDTH, WIDTH),
    "ffn_gate": (HIDDEN, WIDTH),
    "ffn_up": (HIDDEN, WIDTH),
    "ffn_down": (WIDTH, HIDDEN),
}
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6  # token types of GGUF


def vocabulary() -> tuple[list[str], list[float], list[int]]:
    """(pieces, scores, types): control tokens, bytes, letters, then all pairs and triples of letters."""
    letters = string.ascii_lowercase
    pieces = ["▁", *letters]
    pieces += ["".join(p) for p in itertools.product(letters, repeat=2)]
    pieces += ["▁" + "".join(p) for n in (1, 2) for p in itertools.product(letters, repeat=n)]
    pieces += ["".join(p) for p in itertools.product(letters, repeat=3)]
    pieces += ["▁" + "".join(p) for p in itertools.product(letters, repeat=3)]
    pieces = pieces[: VOCABULARY - 3 - 256]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *pieces]
    types = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * len(pieces)]
    return tokens, [0.0] * 259 + [float(-i) for i in range(len(pieces))], types


def q4_0(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """Random Q4_0 blocks, uint8 [rows, columns / 32 * 18]: a float16 scale and 32 nibbles around 8 each."""
    blocks = rng.integers(0, 256, (rows, columns // 32, 18), dtype=np.uint8)
    scale = np.float16(1 / (4.6 * columns**0.5))  # nibbles have a deviation of 4.6: keeps activations near 1
    blocks[:, :, :2] = np.frombuffer(scale.tobytes(), np.uint8)
    return blocks.reshape(rows, -1)


def write_model(path: Path) -> None:
    from anytune.gguf import write_gguf

    rng = np.random.default_rng(0)
    tokens, scores, types = vocabulary()
    metadata = {
        "general.architecture": "llama",
        "general.name": "Random TinyLlama shape",
        "general.file_type": 2,
        "llama.block_count": LAYERS,
        "llama.context_length": 2048,
        "llama.embedding_length": WIDTH,
        "llama.feed_forward_length": HIDDEN,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KEY_HEADS,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": WIDTH // HEADS,
        "llama.rope.freq_base": 10000.0,
        "llama.vocab_size": VOCABULARY,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": np.array(scores, np.float32),
        "tokenizer.ggml.token_type": np.array(types, np.int32),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
    }

    def matrix(rows: int, columns: int):
        return (rows, columns), "Q4_0", lambda: q4_0(rng, rows, columns)

    def norm():
        return (WIDTH,), "F32", np.ones(WIDTH, np.float32)

    tensors = [
        ("token_embd.weight", *matrix(VOCABULARY, WIDTH)),
        ("output_norm.weight", *norm()),
        ("output.weight", *matrix(VOCABULARY, WIDTH)),
    ]
    for layer in range(LAYERS):
        tensors += [(f"blk.{layer}.{name}.weight", *norm()) for name in ("attn_norm", "ffn_norm")]
        tensors += [(f"blk.{layer}.{name}.weight", *matrix(*shape)) for name, shape in LAYER.items()]
    write_gguf(path, metadata, tensors)


def write_text(path: Path, examples: int = 16, words: int = 100) -> None:
    rng = np.random.default_rng(1)
    with open(path, "w", encoding="utf-8") as file:
        for _ in range(examples):
            text = " ".join("".join(rng.choice(list(string.ascii_lowercase), rng.integers(2, 7))) for _ in range(words))
            file.write(json.dumps({"text": text}) + "\n")
