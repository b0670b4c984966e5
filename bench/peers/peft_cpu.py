"""Contestant: training steps of transformers + peft on the same GGUF's dequantized weights (one step a turn).

    pip install torch==2.13.0 transformers peft gguf
    python bench/peers/peft_cpu.py MODEL.gguf --shape 4x128 --threads 2 --dtype fp32

A llama-architecture model, LoRA on all seven linears (with --full: every weight is trained, in --dtype, peft has no
part in it), the first half of each sequence without loss, AdamW included. Takes turns like bench/steps.py.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common

options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
options.add_argument("model")
options.add_argument("--shape", default="4x128")
options.add_argument("--threads", type=int, default=2)
options.add_argument("--rank", type=int, default=16)
options.add_argument(
    "--dtype",
    choices=["fp32", "bf16", "bf16-all", "autocast"],
    default="fp32",
    help="bf16: the model, while peft keeps the adapter in float32; bf16-all: the adapter, too",
)
options.add_argument("--full", action="store_true", help="train the model's own weights")
options.add_argument("--warmup", type=int, default=2)
args = options.parse_args()

import numpy as np  # noqa: E402
import torch  # noqa: E402
from gguf import GGUFReader, quants  # noqa: E402
from peft import LoraConfig, get_peft_model  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

LAYER = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
OUTSIDE = {"token_embd": "model.embed_tokens.weight", "output_norm": "model.norm.weight", "output": "lm_head.weight"}


def load(path: str) -> LlamaForCausalLM:
    """The GGUF's weights in transformers' model; q and k rows go back to its order of rotary pairs."""
    reader = GGUFReader(path)

    def value(key: str):
        return reader.fields[f"llama.{key}"].contents()

    heads = {"attn_q": value("attention.head_count"), "attn_k": value("attention.head_count_kv")}
    state = {}
    for tensor in reader.tensors:
        weight = np.ascontiguousarray(quants.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        parts = tensor.name.split(".")
        if parts[0] != "blk":
            if parts[0] in OUTSIDE:
                state[OUTSIDE[parts[0]]] = torch.from_numpy(weight)
            continue
        if parts[2] in heads:
            pairs = weight.reshape(heads[parts[2]], -1, 2, weight.shape[1])
            weight = np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(weight.shape))
        state[f"model.layers.{parts[1]}.{LAYER[parts[2]]}.weight"] = torch.from_numpy(weight)
    config = LlamaConfig(
        hidden_size=value("embedding_length"),
        intermediate_size=value("feed_forward_length"),
        num_hidden_layers=value("block_count"),
        num_attention_heads=heads["attn_q"],
        num_key_value_heads=heads["attn_k"],
        vocab_size=state["model.embed_tokens.weight"].shape[0],
        rms_norm_eps=value("attention.layer_norm_rms_epsilon"),
        max_position_embeddings=value("context_length"),
        tie_word_embeddings="lm_head.weight" not in state,
        rope_parameters={"rope_type": "default", "rope_theta": value("rope.freq_base")},
    )
    made = LlamaForCausalLM(config)
    if args.dtype.startswith("bf16"):
        made = made.to(torch.bfloat16)
    missing, unexpected = made.load_state_dict(state, strict=False)
    if unexpected or not set(missing) <= {"lm_head.weight"}:
        raise SystemExit(f"the weights do not fit: missing {missing}, unexpected {unexpected}")
    return made


torch.set_num_threads(args.threads)
torch.manual_seed(0)
peak = common.Peak()
model = load(args.model)
gc.collect()
if not args.full:
    model = get_peft_model(
        model,
        LoraConfig(r=args.rank, lora_alpha=2 * args.rank, target_modules="all-linear", lora_dropout=0.0),
        autocast_adapter_dtype=args.dtype != "bf16-all",
    )
model.train()
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5 if args.full else 1e-4)
examples, length = map(int, args.shape.split("x"))
tokens = examples * length
ids = torch.randint(0, model.config.vocab_size, (examples, length), generator=torch.Generator().manual_seed(1))
labels = ids.clone()
labels[:, : length // 2] = -100


def turn() -> dict:
    wall, cpu = time.perf_counter(), time.process_time()
    autocast = torch.autocast("cpu", dtype=torch.bfloat16) if args.dtype == "autocast" else contextlib.nullcontext()
    with autocast:
        loss = model(input_ids=ids, labels=labels).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {
        "seconds": round(wall, 4),
        "tokens_per_s": round(tokens / wall, 1),
        "tokens_per_cpu_s": round(tokens / cpu, 1),
        "loss": round(float(loss), 4),
    }


peak.mark()
for _ in range(args.warmup):
    turn()
common.serve(
    {"who": "transformers+peft", "dtype": args.dtype, "loss_tokens": int((labels[:, 1:] >= 0).sum())},
    turn,
    peak.figures,
)
