"""Peer: LoRA training steps of Unsloth on one GPU, from a local folder that hf_folder.py made.

    python bench/peers/unsloth_gpu.py FOLDER --shape 8x1024 [--bits 4] [--checkpointing unsloth]

Rank 16 on the seven linears, no dropout, bf16 under autocast as its trainer runs it, the second half of each example
with loss, clipping, fused AdamW. Of steps that are waited for and of steps in a row the faster counts. Prints one JSON
line.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import statistics
import time

os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
options.add_argument("folder")
options.add_argument("--shape", default="8x1024", help="examples x tokens of each")
options.add_argument("--bits", type=int, default=16, choices=(4, 16))
options.add_argument("--checkpointing", default="none", choices=("none", "true", "unsloth"))
options.add_argument("--steps", type=int, default=12)
options.add_argument("--warm", type=int, default=4)
args = options.parse_args()

from unsloth import FastLanguageModel  # noqa: E402, I001  (before torch and transformers, which it patches)
import torch  # noqa: E402

examples, length = map(int, args.shape.split("x"))
how = {"none": False, "true": True, "unsloth": "unsloth"}[args.checkpointing]
longest = max(length, 2048)
model, _ = FastLanguageModel.from_pretrained(
    args.folder,
    max_seq_length=longest,
    dtype=torch.bfloat16,
    load_in_4bit=args.bits == 4,
    use_exact_model_name=True,
    use_gradient_checkpointing=how,
    local_files_only=True,
)
model = FastLanguageModel.get_peft_model(
    model,
    r=16,
    lora_alpha=32,
    lora_dropout=0,
    bias="none",
    random_state=3407,
    use_gradient_checkpointing=how,
    target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    max_seq_length=longest,
)
FastLanguageModel.for_training(model, use_gradient_checkpointing=how)
trained = [p for p in model.parameters() if p.requires_grad]
optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
batches = [torch.randint(0, model.config.vocab_size, (examples, length), device="cuda") for _ in range(4)]


def step(number: int):
    ids = batches[number % len(batches)]
    labels = ids.clone()
    labels[:, : length // 2] = -100
    with torch.autocast("cuda", dtype=torch.bfloat16):
        loss = model(input_ids=ids, labels=labels).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return loss


def take(count: int) -> float:
    """Seconds a step of so many in a row."""
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for number in range(count):
        loss = step(number)
    torch.cuda.synchronize()
    losses.append(float(loss))
    return (time.perf_counter() - begin) / count


losses: list[float] = []
for _ in range(args.warm):
    take(1)
waited = statistics.median(take(1) for _ in range(args.steps))
peak = torch.cuda.max_memory_allocated()
row = take(args.steps)
print(
    json.dumps(
        {
            "peer": f"Unsloth, {args.bits} bits" + (f", checkpointing {args.checkpointing}" if how else ""),
            "shape": args.shape,
            "bits": args.bits,
            "checkpointing": args.checkpointing,
            "tokens_per_s": round(examples * length / min(waited, row), 1),
            "ms_per_step": round(waited * 1e3, 2),
            "ms_in_a_row": round(row * 1e3, 2),
            "peak_gib": round(peak / 2**30, 2),
            "loss": [round(losses[0], 4), round(losses[-1], 4)],
            "versions": {n: importlib.metadata.version(n) for n in ("unsloth", "unsloth_zoo", "bitsandbytes")},
        }
    ),
    flush=True,
)
