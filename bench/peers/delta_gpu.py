"""Peer: LoRA training steps of transformers + peft on one GPU on a model of Qwen 3.5's kind, bf16 under autocast, with
flash-linear-attention's kernels for the gated delta rule and the convolution before it.

    python bench/peers/delta_gpu.py --shape 8x1024 [--checkpointing]

Rank 16 on the layers' large linears, the second half of each example with loss, fused AdamW. The head runs on tokens
with loss alone, 4,096 at a time, each piece made again in the backward. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from qwen35 import KERNEL, PERIOD, SHAPES, VOCABULARY

options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
options.add_argument("--model", default="qwen3.5-2b", choices=SHAPES)
options.add_argument("--shape", default="8x1024", help="examples x tokens of each")
options.add_argument("--rank", type=int, default=16)
options.add_argument("--checkpointing", action="store_true")
options.add_argument("--compile", action="store_true")
options.add_argument("--steps", type=int, default=8)
args = options.parse_args()

import fla  # noqa: E402
import fla.ops.common.chunk_o as chunk_o  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from fla.modules.convolution import causal_conv1d  # noqa: E402
from fla.ops.gated_delta_rule import chunk_gated_delta_rule  # noqa: E402
from peft import LoraConfig, get_peft_model  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402
from transformers import Qwen3_5ForCausalLM, Qwen3_5TextConfig  # noqa: E402
from transformers.models.qwen3_5 import modeling_qwen3_5 as modeling  # noqa: E402


chunk_o.TRITON_ABOVE_3_7_1 = True  # it refuses older ones on Hopper for their wrong gradients; here its speed counts


def delta_rule(query, key, value, g, beta, **settings):
    kept = ("initial_state", "output_final_state", "use_qk_l2norm_in_kernel")
    return chunk_gated_delta_rule(query, key, value, g=g, beta=beta, **{name: settings.get(name) for name in kept})


def convolution(x, weight, bias=None, activation=None, **settings):
    y, _ = causal_conv1d(x.transpose(1, 2).contiguous(), weight=weight, bias=bias, activation=activation)
    return y.transpose(1, 2)


width, hidden, layers, heads, keys, size, net_keys, net_values, net_size = SHAPES[args.model]
examples, length = map(int, args.shape.split("x"))
torch.manual_seed(0)
config = Qwen3_5TextConfig(
    vocab_size=VOCABULARY,
    hidden_size=width,
    intermediate_size=hidden,
    num_hidden_layers=layers,
    num_attention_heads=heads,
    num_key_value_heads=keys,
    head_dim=size,
    linear_num_key_heads=net_keys,
    linear_num_value_heads=net_values,
    linear_key_head_dim=net_size,
    linear_value_head_dim=net_size,
    linear_conv_kernel_dim=KERNEL,
    layer_types=["linear_attention" if (i + 1) % PERIOD else "full_attention" for i in range(layers)],
    tie_word_embeddings=True,
)
with torch.device("cuda"):
    torch.set_default_dtype(torch.bfloat16)
    model = Qwen3_5ForCausalLM._from_config(config, attn_implementation="sdpa")
    torch.set_default_dtype(torch.float32)
modeling.torch_chunk_gated_delta_rule, modeling.causal_conv1d_fn = delta_rule, convolution
for module in model.modules():
    for name, function in (("chunk_gated_delta_rule", delta_rule), ("causal_conv1d_fn", convolution)):
        if hasattr(module, name):
            setattr(module, name, function)
model.config.use_cache = False
if args.checkpointing:
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.enable_input_require_grads()
names = "in_proj_qkv in_proj_z out_proj q_proj k_proj v_proj o_proj gate_proj up_proj down_proj".split()
model = get_peft_model(model, LoraConfig(r=args.rank, lora_alpha=2 * args.rank, target_modules=names))
trained = [p for p in model.parameters() if p.requires_grad]
for parameter in trained:
    parameter.data = parameter.data.float()
optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
inner = model.get_base_model()
body = torch.compile(inner.model) if args.compile else inner.model
ids = torch.randint(0, VOCABULARY, (examples, length), device="cuda")
targets = ids[:, length // 2 :].flatten()


def piece(h, target):
    return F.cross_entropy(inner.lm_head(h).float(), target, reduction="sum")


times = []
for _ in range(args.steps + 3):
    torch.cuda.synchronize()
    begin = time.perf_counter()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        h = body(input_ids=ids, use_cache=False).last_hidden_state[:, length // 2 - 1 : -1].flatten(0, 1)
        pieces = zip(h.split(4096), targets.split(4096))
        loss = sum(checkpoint(piece, *pair, use_reentrant=False) for pair in pieces) / len(targets)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    optimizer.zero_grad()
    torch.cuda.synchronize()
    times.append(time.perf_counter() - begin)
middle = statistics.median(times[3:])
name = f"transformers + peft, flash-linear-attention {fla.__version__}" + ", compiled" * args.compile
print(
    json.dumps(
        {
            "peer": name,
            "shape": args.shape,
            "checkpointing": args.checkpointing,
            "ms_per_step": round(middle * 1e3, 2),
            "tokens_per_s": round(examples * length / middle, 1),
            "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2),
            "loss": round(float(loss), 4),
        }
    ),
    flush=True,
)
