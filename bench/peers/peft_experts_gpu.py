"""Peer: LoRA training steps of transformers + peft on one GPU, random weights of Qwen3-30B-A3B's shape in bf16.

    python bench/peers/peft_experts_gpu.py --layers 24 --shape 8x1024 [--checkpointing]

As peft_gpu.py, with LoRA on attention's linears alone; transformers chooses how it runs experts. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import sys
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
from peft_steps import Adapted, random_model, report, tokens  # noqa: E402
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM  # noqa: E402

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
modules = ["q_proj", "k_proj", "v_proj", "o_proj"]  # "all-linear" takes the experts, too
adapted = Adapted(random_model(Qwen3MoeForCausalLM, config), args.rank, modules, args.checkpointing)
ids, labels = tokens(vocabulary, args.shape)
try:
    seconds, loss = adapted.timed(lambda: adapted.model(input_ids=ids, labels=labels).loss, args.steps, warmup=2)
except torch.OutOfMemoryError:
    print(json.dumps({"failed": "out of memory"}), flush=True)
    sys.exit()
report(
    "transformers + peft" + ", checkpointing" * args.checkpointing,
    args.shape,
    seconds,
    loss,
    layers=args.layers,
    experts=getattr(config, "_experts_implementation", None),
    trained=sum(p.numel() for p in adapted.trained),
)
