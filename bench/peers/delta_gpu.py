"""Peer: LoRA training steps of transformers + peft on one GPU on a model of Qwen 3.5's kind, bf16 under autocast, with
flash-linear-attention's kernels for the gated delta rule and the convolution before it.

    python bench/peers/delta_gpu.py --shape 8x1024 [--checkpointing]

Rank 16 on the layers' large linears, the second half of each example with loss, fused AdamW. The head runs on tokens
with loss alone, 4,096 at a time, each piece made again in the backward. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import sys
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
from peft_steps import Adapted, random_model, report, tokens  # noqa: E402
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
length = int(args.shape.split("x")[1])
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
model = random_model(Qwen3_5ForCausalLM, config)
modeling.torch_chunk_gated_delta_rule, modeling.causal_conv1d_fn = delta_rule, convolution
for module in model.modules():
    for name, function in (("chunk_gated_delta_rule", delta_rule), ("causal_conv1d_fn", convolution)):
        if hasattr(module, name):
            setattr(module, name, function)
names = "in_proj_qkv in_proj_z out_proj q_proj k_proj v_proj o_proj gate_proj up_proj down_proj".split()
adapted = Adapted(model, args.rank, names, args.checkpointing)
inner = adapted.model.get_base_model()
body = torch.compile(inner.model) if args.compile else inner.model
ids, _ = tokens(VOCABULARY, args.shape)
targets = ids[:, length // 2 :].flatten()


def piece(h, target):
    return F.cross_entropy(inner.lm_head(h).float(), target, reduction="sum")


def mean_loss():
    h = body(input_ids=ids, use_cache=False).last_hidden_state[:, length // 2 - 1 : -1].flatten(0, 1)
    pieces = zip(h.split(4096), targets.split(4096))
    return sum(checkpoint(piece, *pair, use_reentrant=False) for pair in pieces) / len(targets)


seconds, loss = adapted.timed(mean_loss, args.steps)
name = f"transformers + peft, flash-linear-attention {fla.__version__}" + ", compiled" * args.compile
report(name, args.shape, seconds, loss, checkpointing=args.checkpointing)
