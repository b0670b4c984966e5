"""Contestant of bench/quality.py: an adapter trained by transformers + peft on the GGUF's dequantized weights.

    pip install torch==2.13.0 transformers peft gguf
    python bench/peers/peft_train.py MODEL.gguf DATA.jsonl --output FOLDER --epochs 1 --lr 5e-4 --batch 512 --seed 0

The tokens, the loss mask, which examples make a step, and the learning rate of each step are anytune's for that seed,
so that only the training itself differs: transformers' model, padded batches, autograd, peft's start, torch's AdamW.
Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common  # noqa: F401 (the working tree, whether or not it is installed)

options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
options.add_argument("model")
options.add_argument("data")
options.add_argument("--output", required=True)
options.add_argument("--epochs", type=int, required=True)
options.add_argument("--max-steps", type=int)
options.add_argument("--lr", type=float, required=True)
options.add_argument("--batch", type=int, required=True, help="tokens of a step")
options.add_argument("--context", type=int, default=512, help="tokens of the longest example")
options.add_argument("--seed", type=int, required=True)
options.add_argument("--rank", type=int, default=16)
options.add_argument("--threads", type=int, default=2)
options.add_argument(
    "--dtype",
    choices=["f32", "bf16", "bf16-all"],
    default="bf16",
    help="bf16: the model, while peft keeps the adapter in float32; bf16-all: the adapter, too",
)
args = options.parse_args()

import numpy as np  # noqa: E402
import peft  # noqa: E402
import torch  # noqa: E402
from anytune.gguf import GGUF  # noqa: E402
from anytune.text import ChatTemplate, Tokenizer, build_dataset  # noqa: E402
from anytune.train.steps import Steps  # noqa: E402
from anytune.train.schedule import Schedule  # noqa: E402
from anytune.train.settings import TrainSettings  # noqa: E402
from tests.support import twin  # noqa: E402

torch.set_num_threads(args.threads)
torch.manual_seed(args.seed)
path = Path(args.model)
with GGUF.open(path) as gguf:
    tokenizer = Tokenizer.from_gguf(gguf)
    data = build_dataset(args.data, tokenizer, ChatTemplate.for_model(gguf, tokenizer), context=args.context)
settings = TrainSettings(
    epochs=args.epochs, max_steps=args.max_steps, lr=args.lr, batch=args.batch, ubatch=args.batch, seed=args.seed
)
plan = Steps(data, settings)
schedule = Schedule.of(settings, plan.total)
model = twin.transformers_model(path, attention="sdpa")
if args.dtype != "f32":
    model = model.to(torch.bfloat16)
model = peft.get_peft_model(
    model,
    peft.LoraConfig(r=args.rank, lora_alpha=2 * args.rank, target_modules="all-linear", lora_dropout=0.0),
    autocast_adapter_dtype=args.dtype != "bf16-all",
)
model.train()
parameters = [p for p in model.parameters() if p.requires_grad]
optimizer = torch.optim.AdamW(
    parameters, lr=args.lr, betas=(settings.beta1, settings.beta2), eps=settings.eps, weight_decay=settings.weight_decay
)


def loss_of(indexes: list[int]) -> torch.Tensor:
    """Mean cross-entropy of these examples' learned tokens, padded on the right; logits only where there is loss.

    The rows are picked before the head: torch took 20 s in bf16 for [examples, columns, width] times 262,144 words, as
    `logits_to_keep` has it, and a tenth of a second for the same rows as [rows, width].
    """
    pairs = [data.example(i) for i in indexes]
    width = max(len(ids) for ids, _ in pairs)
    ids, targets = np.zeros((len(pairs), width), np.int64), np.full((len(pairs), width), -1, np.int64)
    for row, (own, loss) in enumerate(pairs):
        ids[row, : len(own)] = own
        targets[row, : len(own) - 1] = np.where(loss[1:], own[1:], -1)
    mask = np.arange(width) < np.array([[len(own)] for own, _ in pairs])
    inner = model.get_base_model()
    hidden = inner.model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask.astype(np.int64)))[0]
    logits = inner.lm_head(hidden[torch.from_numpy(targets >= 0)]).float()
    return torch.nn.functional.cross_entropy(logits, torch.from_numpy(targets[targets >= 0]))


losses, wall, cpu, tokens = [], time.perf_counter(), time.process_time(), 0
for position, (indexes,) in plan.after(0):
    loss = loss_of(indexes)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
    for group in optimizer.param_groups:
        group["lr"] = schedule.lr(position.step)
    optimizer.step()
    optimizer.zero_grad()
    losses.append(round(float(loss.detach()), 5))
    tokens += sum(len(data.example(i)[0]) for i in indexes)
    if position.step % 5 == 0:
        print(
            f"  step {position.step} of {plan.total}  loss {losses[-1]:.4f}  "
            f"{tokens / (time.perf_counter() - wall):.0f} tok/s",
            file=sys.stderr,
            flush=True,
        )
figures = {"seconds": round(time.perf_counter() - wall, 1), "cpu_seconds": round(time.process_time() - cpu, 1)}
model.float().save_pretrained(args.output)
print(
    json.dumps(
        {
            "who": "transformers+peft",
            "dtype": args.dtype,
            "steps": plan.total,
            "tokens": tokens,
            **figures,
            "losses": losses,
            "torch": torch.__version__,
            "peft": peft.__version__,
        }
    ),
    flush=True,
)
