"""Small random GGUF files of every architecture, with tokenizers that llama.cpp loads.

    path = tiny.write(tmp / "q.gguf", "qwen3")                    F32
    path = tiny.write(tmp / "q.gguf", "qwen3", type="Q4_0")       linears and embeddings in Q4_0, norms in F32

Dimensions are multiples of 32 (of 256 where `type` is a K-quant), the sliding window is 8 so that it acts
within 40 tokens, and weights are scaled so that logits spread over a few nats.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np

from tests.support.tiny_layers import LAYERS, feed_forward
from tests.support.tiny_shapes import DENSE, EACH, LLAMA3, MIXTURES, SHAPES, Shape, has_experts  # noqa: F401

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# K-quant -> byte offsets of a block's f16 scales (d, dmin or None), and its size in bytes.
K_QUANTS = {
    "Q2_K": (80, 82, 84),
    "Q3_K": (108, None, 110),
    "Q4_K": (0, 2, 144),
    "Q5_K": (0, 2, 176),
    "Q6_K": (208, None, 210),
    "TQ2_0": (64, None, 66),
}


# The norm behind a tiny delta net's heads magnifies roundings, unless its eps keeps results near 0 from being blown up:
# bf16's lowest cosines of gradients on six streams are 0.16 to 0.94 with 1e-5, at least 0.998 with 0.1
GENTLE = {name: {"attention.layer_norm_rms_epsilon": 0.1} for name in ("qwen35", "qwen35moe")}


def write(path: Path, name: str = "llama", type: str = "F32", seed: int = 0, **meta) -> Path:
    """Write the tiny model `name` of SHAPES to `path`, its matrices in `type`, and return `path`.

    meta: the architecture's metadata in place of its own, such as context_length.
    """
    from anytune.gguf import write_gguf

    shape = SHAPES[name]
    shape = replace(shape, meta=shape.meta | meta)
    if type in K_QUANTS:
        shape = replace(shape, width=256, ff=256, head_dim=256 // shape.heads)
    rng = np.random.default_rng(seed)
    tensors = []
    for tensor, (dims, scale, kind) in tensor_table(shape).items():
        if kind == "matrix":
            stored, data = type, matrix(rng, dims, scale, type)
        else:
            offset = {"norm": 1.0, "small": 0.3}.get(kind, 0.0)
            stored, data = "F32", (offset + scale * rng.standard_normal(dims)).astype(np.float32)
            data = -np.exp(data) if kind == "decay" else data
        tensors.append((tensor, dims, stored, data))
    if shape.arch == "gemma4":  # an eighth of each head turns in full layers
        factors = np.where(np.arange(shape.head_dim // 2) < shape.head_dim // 8, 1, 1e30).astype(np.float32)
        tensors.append(("rope_freqs.weight", factors.shape, "F32", factors))
    if shape.factors:
        factors = rope_factors(shape)
        tensors.append(("rope_freqs.weight", factors.shape, "F32", factors))
    if shape.long:
        for number, which in enumerate(("short", "long")):
            factors = 1 + (1 + 3 * number) * rng.random(shape.meta["rope.dimension_count"] // 2, np.float32)
            tensors.append((f"rope_factors_{which}.weight", factors.shape, "F32", factors))
    write_gguf(path, metadata(shape, name), tensors)
    return path


def matrix(rng: np.random.Generator, dims: tuple[int, ...], scale: float, type: str) -> np.ndarray:
    """Normal weights [out, in] of deviation `scale`; for a K-quant, random blocks of about that deviation."""
    if type not in K_QUANTS:
        return (scale * rng.standard_normal(dims)).astype(np.float32)
    d, dmin, size = K_QUANTS[type]
    blocks = rng.integers(0, 256, (math.prod(dims) // 256, size), dtype=np.uint8)
    unit = {"Q2_K": 8 * 1.1, "Q3_K": 18 * 2.3, "Q4_K": 32 * 6, "Q5_K": 32 * 12, "Q6_K": 74 * 18.5, "TQ2_0": 1.2}[type]
    blocks[:, d : d + 2] = np.frombuffer(np.float16(scale / unit).tobytes(), np.uint8)
    if dmin is not None:  # the offset that centres the quants: half of their range
        middle = {"Q2_K": 1.5, "Q4_K": 7.5, "Q5_K": 15.5}[type]
        blocks[:, dmin : dmin + 2] = np.frombuffer(np.float16(middle * scale / unit).tobytes(), np.uint8)
    return blocks.reshape(math.prod(dims[:-1]), -1)


def tensor_table(s: Shape) -> dict[str, tuple[tuple[int, ...], float, str]]:
    """Tensor name -> (shape, deviation, kind: matrix | norm | bias), in file order."""
    q, kv = s.heads * s.head_dim, s.kv_heads * s.head_dim

    def linear(out: int, width: int) -> tuple:
        return (out, width), width**-0.5, "matrix"

    def norm(n: int) -> tuple:
        return (n,), 0.2, "norm"

    table = {
        "token_embd.weight": ((s.vocab, s.width), 2 * s.width**-0.5, "matrix"),
        "token_embd_norm.weight" if s.arch.startswith("lfm2") else "output_norm.weight": norm(s.width),
    }
    if own := s.meta.get("embedding_length_per_layer_input"):
        table |= {
            "per_layer_token_embd.weight": ((s.vocab, s.layers * own), own**-0.5, "matrix"),
            "per_layer_model_proj.weight": linear(s.layers * own, s.width),
            "per_layer_proj_norm.weight": norm(own),
        }
    if not s.tied:
        table["output.weight"] = ((s.vocab, s.width), 2 * s.width**-0.5, "matrix")
    for i in range(s.layers):
        if s.arch in LAYERS:
            table |= {f"blk.{i}.{name}": row for name, row in LAYERS[s.arch](s, i).items()}
            continue
        layer = {
            "attn_norm.weight": norm(s.width),
            "attn_q.weight": linear(q, s.width),
            "attn_k.weight": linear(kv, s.width),
            "attn_v.weight": linear(kv, s.width),
            "attn_output.weight": linear(s.width, q),
            "ffn_norm.weight": norm(s.width),
            **feed_forward(s, i),
        }
        if s.bias:
            layer |= {
                "attn_q.bias": ((q,), 0.5, "bias"),
                "attn_k.bias": ((kv,), 0.5, "bias"),
                "attn_v.bias": ((kv,), 0.5, "bias"),
            }
        if s.sub_norm:
            layer |= {"attn_sub_norm.weight": norm(q), "ffn_sub_norm.weight": norm(s.ff)}
        if s.fused:
            for name in ("attn_q", "attn_k", "attn_v", "ffn_gate"):
                del layer[f"{name}.weight"]
            layer |= {"attn_qkv.weight": linear(q + 2 * kv, s.width), "ffn_up.weight": linear(2 * s.ff, s.width)}
        if s.qk_norm:
            layer |= {"attn_q_norm.weight": norm(s.head_dim), "attn_k_norm.weight": norm(s.head_dim)}
        if s.wide_norm:
            layer |= {"attn_q_norm.weight": norm(q), "attn_k_norm.weight": norm(kv)}
            del layer["attn_norm.weight"], layer["ffn_norm.weight"]
        if s.post_norm or s.wide_norm:
            layer |= {"post_attention_norm.weight": norm(s.width), "post_ffw_norm.weight": norm(s.width)}
        table |= {f"blk.{i}.{name}": row for name, row in layer.items()}
    return table


def rope_factors(s: Shape) -> np.ndarray:
    """Llama 3.1's divisors of the rope frequencies, [head_dim / 2] (its published configuration's scheme)."""
    wavelength = 2 * np.pi * s.rope_base ** (np.arange(0, s.head_dim, 2) / s.head_dim)
    turns = LLAMA3["original_max_position_embeddings"] / wavelength
    low, high, factor = LLAMA3["low_freq_factor"], LLAMA3["high_freq_factor"], LLAMA3["factor"]
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)


def metadata(s: Shape, name: str) -> dict:
    own = {
        "context_length": 256,
        "embedding_length": s.width,
        "block_count": s.layers,
        "feed_forward_length": s.ff,
        "attention.head_count": s.heads,
        "attention.head_count_kv": s.kv_heads,
        "attention.key_length": s.head_dim,
        "attention.value_length": s.head_dim,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": s.rope_base,
        "vocab_size": s.vocab,
    } | s.meta
    if s.arch in ("llama", "smollm3", "granite", "mistral3"):
        own["rope.dimension_count"] = s.head_dim
    return (
        {"general.architecture": s.arch, "general.name": f"tiny {name}".replace("phi3", "phi")}
        | {f"{s.arch}.{key}": value for key, value in own.items()}
        | (spm_vocabulary(s.vocab) if s.spm else bpe_vocabulary(s.vocab, s.pre))
        | {"tokenizer.chat_template": CHATML}
    )


def byte_symbols() -> list[str]:
    """GPT-2's printable stand-in for each of the 256 bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(b) if b in printable else chr(next(others)) for b in range(256)]


def bpe_vocabulary(size: int, pre: str) -> dict:
    """Control tokens, 256 bytes and merges of common English pairs, filled up with unused tokens."""
    control = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    merges = ["Ġ t", "Ġ a", "h e", "i n", "r e", "o n", "Ġt he", "e r", "Ġ s", "a t", "Ġ w", "o r", "e n", "Ġ c", "i s"]
    tokens = control + byte_symbols() + ["".join(m.split()) for m in merges]
    types = [3] * len(control) + [1] * (len(tokens) - len(control)) + [5] * (size - len(tokens))
    tokens += [f"<|unused_{i}|>" for i in range(size - len(tokens))]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array(types, np.int32),
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
    }


def spm_vocabulary(size: int) -> dict:
    """<unk>, BOS, EOS, chat markers, byte fallback, a few pieces with scores, then unused tokens."""
    head = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    pieces = ["▁the", "▁t", "he", "▁a", "in", "er", "▁"] + list("etaoinshrdlucmfwypvbgkjqxz")
    tokens = head + [f"<0x{b:02X}>" for b in range(256)] + pieces
    types = [2, 3, 3, 3, 3] + [6] * 256 + [1] * len(pieces) + [5] * (size - len(tokens))
    scores = [0.0] * (len(head) + 256) + [-float(i) for i in range(len(pieces))] + [0.0] * (size - len(tokens))
    tokens += [f"<unused{i}>" for i in range(size - len(tokens))]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": np.array(scores, np.float32),
        "tokenizer.ggml.token_type": np.array(types, np.int32),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 4,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
    }
