"""Peer: LoRA training steps of transformers + peft on one GPU, random weights of Qwen3's shape, bf16 under autocast.

    python bench/peers/peft_gpu.py --shape 8x1024 [--compile] [--liger] [--checkpointing] [--model qwen3-1.7b]

Rank 16 on all linears, adapters in float32, the second half of each example with loss, fused AdamW. With torchrun's
variables one of several processes (DDP), each with that many examples a step. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from qwen3 import SHAPES

options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
options.add_argument("--model", default="qwen3-1.7b", choices=SHAPES)
options.add_argument("--vocabulary", type=int, default=151_936)
options.add_argument("--shape", default="8x1024", help="examples x tokens of each")
options.add_argument("--rank", type=int, default=16)
options.add_argument("--compile", action="store_true")
options.add_argument("--liger", action="store_true", help="Liger's kernels in place of transformers' own")
options.add_argument("--checkpointing", action="store_true")
options.add_argument("--steps", type=int, default=10)
args = options.parse_args()

import torch  # noqa: E402
from peft import LoraConfig, get_peft_model  # noqa: E402
from transformers import Qwen3Config, Qwen3ForCausalLM  # noqa: E402

if args.liger:
    from liger_kernel.transformers import apply_liger_kernel_to_qwen3

    apply_liger_kernel_to_qwen3(
        rope=True, cross_entropy=False, fused_linear_cross_entropy=True, rms_norm=True, swiglu=True
    )
rank, processes = (int(os.environ.get(name, default)) for name, default in (("LOCAL_RANK", 0), ("WORLD_SIZE", 1)))
torch.cuda.set_device(rank)
if processes > 1:
    torch.distributed.init_process_group("nccl", device_id=torch.device("cuda", rank))
examples, length = map(int, args.shape.split("x"))
width, hidden, layers, heads, keys, size = SHAPES[args.model]
torch.manual_seed(0)
config = Qwen3Config(
    vocab_size=args.vocabulary,
    hidden_size=width,
    intermediate_size=hidden,
    num_hidden_layers=layers,
    num_attention_heads=heads,
    num_key_value_heads=keys,
    head_dim=size,
    tie_word_embeddings=True,
    rope_theta=1e6,
    max_position_embeddings=40_960,
)
with torch.device("cuda"):
    torch.set_default_dtype(torch.bfloat16)
    model = Qwen3ForCausalLM._from_config(config, attn_implementation="sdpa")
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
forward = torch.compile(model) if args.compile else model
if processes > 1:
    forward = torch.nn.parallel.DistributedDataParallel(forward, device_ids=[rank], gradient_as_bucket_view=True)
ids = torch.randint(0, args.vocabulary, (examples, length), device="cuda")
labels = ids.clone()
labels[:, : length // 2] = -100
times = []
for _ in range(args.steps + 3):
    torch.cuda.synchronize()
    begin = time.perf_counter()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        loss = forward(input_ids=ids, labels=labels).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    optimizer.zero_grad()
    torch.cuda.synchronize()
    times.append(time.perf_counter() - begin)
middle = statistics.median(times[3:])
name = "transformers + peft" + ", Liger" * args.liger + ", compiled" * args.compile + ", DDP" * (processes > 1)
if processes > 1:
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
if rank:
    sys.exit()
print(
    json.dumps(
        {
            "peer": name,
            "shape": args.shape,
            "compile": args.compile,
            "checkpointing": args.checkpointing,
            "ms_per_step": round(middle * 1e3, 2),
            "tokens_per_s": round(processes * examples * length / middle, 1),
            "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2),
            "loss": round(float(loss), 4),
        }
    ),
    flush=True,
)
