"""Peer: LoRA training steps of transformers + peft on one GPU, random weights of Qwen3's shape, bf16 under autocast.

    python bench/peers/peft_gpu.py --shape 8x1024 [--compile] [--liger] [--checkpointing] [--model qwen3-1.7b]

Rank 16 on all linears, adapters in float32, the second half of each example with loss, fused AdamW. With torchrun's
variables one of several processes (DDP), each with that many examples a step. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import os
import sys
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
from peft_steps import Adapted, random_model, report, tokens  # noqa: E402
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
adapted = Adapted(random_model(Qwen3ForCausalLM, config), args.rank, checkpointing=args.checkpointing)
forward = torch.compile(adapted.model) if args.compile else adapted.model
if processes > 1:
    forward = torch.nn.parallel.DistributedDataParallel(forward, device_ids=[rank], gradient_as_bucket_view=True)
ids, labels = tokens(args.vocabulary, args.shape)
seconds, loss = adapted.timed(lambda: forward(input_ids=ids, labels=labels).loss, args.steps)
name = "transformers + peft" + ", Liger" * args.liger + ", compiled" * args.compile + ", DDP" * (processes > 1)
if processes > 1:
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
if rank:
    sys.exit()
report(name, args.shape, seconds, loss, processes, compile=args.compile, checkpointing=args.checkpointing)
