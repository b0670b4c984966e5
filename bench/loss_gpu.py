"""200 optimizer steps in bf16 on one GPU: anytune's curve beside transformers + peft's, from equal weights and pairs.

    python bench/loss_gpu.py                   # about a minute on an H100
    python bench/loss_gpu.py --device cpu      # the same on a CPU, much smaller

A random model of Qwen3's kind (8 layers of 512, bf16) and a made-up language of 64 words that LoRA can learn. What two
right answers may differ by is measured too: peft once more with another implementation of attention, which rounds
otherwise.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import common
import numpy as np

WIDTH, HIDDEN, LAYERS, HEADS, KEYS, SIZE, VOCABULARY, WORDS = 512, 1536, 8, 8, 4, 64, 4096, 64
LINEARS = {
    "attn_q": ("self_attn.q_proj", HEADS * SIZE, WIDTH),
    "attn_k": ("self_attn.k_proj", KEYS * SIZE, WIDTH),
    "attn_v": ("self_attn.v_proj", KEYS * SIZE, WIDTH),
    "attn_output": ("self_attn.o_proj", WIDTH, HEADS * SIZE),
    "ffn_gate": ("mlp.gate_proj", HIDDEN, WIDTH),
    "ffn_up": ("mlp.up_proj", HIDDEN, WIDTH),
    "ffn_down": ("mlp.down_proj", WIDTH, HIDDEN),
}
RANK, RATE = 16, 2e-3


def bf16(values: np.ndarray) -> np.ndarray:
    """Upper halves of float32, rounded to nearest even: uint16."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def weights(layers: int):
    """(name, uint16 [rows, columns]) of every matrix, always the same."""
    random = np.random.default_rng(7)
    yield "token_embd.weight", bf16(random.standard_normal((VOCABULARY, WIDTH)) / 16)
    for layer in range(layers):
        for name, (_, rows, columns) in LINEARS.items():
            yield f"blk.{layer}.{name}.weight", bf16(random.standard_normal((rows, columns)) / columns**0.5)


def batches(steps: int, examples: int, length: int) -> list[np.ndarray]:
    """int64 [examples, length] for each step: every word is followed by one of four."""
    random = np.random.default_rng(8)
    followers, out = random.integers(0, WORDS, (WORDS, 4)), []
    for _ in range(steps):
        ids = np.empty((examples, length), np.int64)
        ids[:, 0] = random.integers(0, WORDS, examples)
        for at in range(1, length):
            ids[:, at] = followers[ids[:, at - 1], random.integers(0, 4, examples)]
        out.append(ids)
    return out


def ours(args, path: Path, pairs: Path, dtype: str = "auto") -> list[float]:
    import anytune
    from anytune.gguf import write_gguf
    from anytune.text.packing import MicroBatch

    norms = [("output_norm", WIDTH)] + [
        (f"blk.{i}.{name}", n)
        for i in range(args.layers)
        for name, n in (("attn_norm", WIDTH), ("ffn_norm", WIDTH), ("attn_q_norm", SIZE), ("attn_k_norm", SIZE))
    ]
    write_gguf(
        path,
        {
            "general.architecture": "qwen3",
            "general.name": "curve",
            "qwen3.block_count": args.layers,
            "qwen3.context_length": 4096,
            "qwen3.embedding_length": WIDTH,
            "qwen3.feed_forward_length": HIDDEN,
            "qwen3.attention.head_count": HEADS,
            "qwen3.attention.head_count_kv": KEYS,
            "qwen3.attention.key_length": SIZE,
            "qwen3.attention.value_length": SIZE,
            "qwen3.attention.layer_norm_rms_epsilon": 1e-6,
            "qwen3.rope.freq_base": 1e4,
        },
        [(name, w.shape, "BF16", w.view(np.uint8)) for name, w in weights(args.layers)]
        + [(f"{name}.weight", (n,), "F32", np.ones(n, np.float32)) for name, n in norms],
    )
    model = anytune.load(path, device="cuda" if args.device == "cuda" else "cpu-torch", dtype=dtype)
    trainee = model.trainee(
        anytune.Lora(rank=RANK, alpha=2.0 * RANK), ubatch=args.examples * args.length, context=args.length
    )
    np.savez(pairs, **{name: a for name, (a, _) in trainee.adapter().tensors.items()})
    losses = []
    for step, ids in enumerate(batches(args.steps, args.examples, args.length), 1):
        batch = MicroBatch.of([(row, np.arange(args.length) >= args.length // 2) for row in ids])
        losses.append((trainee.accumulate(batch, 1 / batch.loss_tokens, step, 0), batch.loss_tokens))
        trainee.update(RATE, step)
    return [float(loss) / count for loss, count in losses]


def theirs(args, pairs: Path, attention: str) -> list[float]:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=HIDDEN,
        num_hidden_layers=args.layers,
        num_attention_heads=HEADS,
        num_key_value_heads=KEYS,
        head_dim=SIZE,
        tie_word_embeddings=True,
        rope_theta=1e4,
        max_position_embeddings=4096,
    )
    model = Qwen3ForCausalLM._from_config(config, attn_implementation=attention)
    state = model.state_dict()
    for name, bits in weights(args.layers):
        values = torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16).float()
        parts = name.split(".")
        key = (
            "model.embed_tokens.weight"
            if parts[0] == "token_embd"
            else f"model.layers.{parts[1]}.{LINEARS[parts[2]][0]}.weight"
        )
        state[key].copy_(values)
    model = get_peft_model(
        model.to(torch.bfloat16).to(args.device),
        LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    own, first = dict(model.named_parameters()), np.load(pairs)
    trained = [p for p in own.values() if p.requires_grad]
    for parameter in trained:
        parameter.data = parameter.data.float()
    for name in first.files:
        _, layer, linear, _ = name.split(".")
        module = f"base_model.model.model.layers.{layer}.{LINEARS[linear][0]}"
        own[f"{module}.lora_A.default.weight"].data.copy_(torch.from_numpy(first[name]))
    optimizer, losses = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0), []
    for ids in batches(args.steps, args.examples, args.length):
        ids = torch.from_numpy(ids).to(args.device)
        labels = ids.clone()
        labels[:, : args.length // 2] = -100
        with torch.autocast(args.device, dtype=torch.bfloat16):
            loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def apart(one: list[float], two: list[float]) -> dict:
    """Differences of two curves: at most, on average (with its sign), and of the last tenth's means."""
    d, last = np.array(one) - np.array(two), max(1, len(one) // 10)
    return {
        "most": round(float(abs(d).max()), 5),
        "mean": round(float(d.mean()), 5),
        "end": round(float(d[-last:].mean()), 5),
    }


def main() -> None:
    options = common.saving(__doc__)
    options.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    options.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    args = options.parse_args()
    args.layers, args.steps, args.examples, args.length = (
        (LAYERS, 200, 8, 256) if args.device == "cuda" else (2, 12, 2, 32)
    )
    if args.run:
        kind, folder = args.run
        pairs = Path(folder) / "pairs.npz"
        made = (
            ours(args, Path(folder) / "curve.gguf", pairs, "fp8" if "fp8" in kind else "auto")
            if kind.startswith("anytune")
            else theirs(args, pairs, kind)
        )
        print(json.dumps({"losses": made}), flush=True)
        return
    before, env, curves = common.machine(), common.environment(8), {}
    with tempfile.TemporaryDirectory(prefix="anytune-bench-") as folder:
        for kind in ("anytune", "anytune, fp8", "sdpa", "eager"):
            curves[kind] = common.run_once(["bench/loss_gpu.py", "--device", args.device, "--run", kind, folder], env)[
                "losses"
            ]
            print(kind, curves[kind][0], curves[kind][-1], file=sys.stderr, flush=True)
    common.save(
        "loss_gpu",
        args,
        before,
        steps=args.steps,
        anytune_to_peft=apart(curves["anytune"], curves["sdpa"]),
        fp8_to_bf16=apart(curves["anytune, fp8"], curves["anytune"]),
        peft_to_peft=apart(curves["eager"], curves["sdpa"]),
        curves={kind: [round(x, 5) for x in curve] for kind, curve in curves.items()},
    )


if __name__ == "__main__":
    main()
