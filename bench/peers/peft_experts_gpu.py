"""Peer: LoRA training steps of transformers + peft on one GPU, random weights of Qwen3-30B-A3B's shape in bf16.

    python bench/peers/peft_experts_gpu.py --layers 24 --shape 8x1024 [--checkpointing]

As peft_gpu.py; transformers chooses how it runs experts. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from experts import SHAPES

options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
options.add_argument("--model", default="qwen3-30b-a3b", choices=SHAPES)
options.add_argument("--layers", type=int, default=24)
options.add_argument("--shape", default="8x1024", help="examples x tokens of each")
options.add_argument("--rank", type=int, default=16)
options.add_argument("--checkpointing", action="store_true")
options.add_argument("--steps", type=int, default=6)
args = options.parse_args()

import torch  # noqa: E402
from peft import LoraConfig, get_peft_model  # noqa: E402
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM  # noqa: E402

examples, length = map(int, args.shape.split("x"))
width, count, used, hidden, _, heads, keys, size, vocabulary = SHAPES[args.model]
torch.manual_seed(0)
config = Qwen3MoeConfig(
    vocab_size=vocabulary,
    hidden_size=width,
    intermediate_size=3 * width,
    moe_intermediate_size=hidden,
    num_local_experts=count,
    num_experts_per_tok=used,
    norm_topk_prob=True,
    num_hidden_layers=args.layers,
    num_attention_heads=heads,
    num_key_value_heads=keys,
    head_dim=size,
    tie_word_embeddings=False,
    rope_theta=1e6,
    max_position_embeddings=40_960,
)
with torch.device("cuda"):
    torch.set_default_dtype(torch.bfloat16)
    model = Qwen3MoeForCausalLM._from_config(config, attn_implementation="sdpa")
    torch.set_default_dtype(torch.float32)
model.config.use_cache = False
if args.checkpointing:
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.enable_input_require_grads()
model = get_peft_model(
    model, LoraConfig(r=args.rank, lora_alpha=2 * args.rank, target_modules="all-linear", task_type="CAUSAL_LM")
)
trained = [p for p in model.parameters() if p.requires_grad]
for parameter in trained:
    parameter.data = parameter.data.float()
optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
ids = torch.randint(0, vocabulary, (examples, length), device="cuda")
labels = ids.clone()
labels[:, : length // 2] = -100
times = []
for _ in range(args.steps + 2):
    torch.cuda.synchronize()
    begin = time.perf_counter()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        loss = model(input_ids=ids, labels=labels).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    optimizer.zero_grad()
    torch.cuda.synchronize()
    times.append(time.perf_counter() - begin)
middle = statistics.median(times[2:])
print(
    json.dumps(
        {
            "peer": "transformers + peft" + ", checkpointing" * args.checkpointing,
            "shape": args.shape,
            "layers": args.layers,
            "experts": getattr(config, "_experts_implementation", None),
            "trained": sum(p.numel() for p in trained),
            "ms_per_step": round(middle * 1e3, 2),
            "tokens_per_s": round(examples * length / middle, 1),
            "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2),
            "loss": round(float(loss), 4),
        }
    ),
    flush=True,
)
