"""Contestant: full fine-tuning steps of anytune on random tokens, half of them with loss.
Takes turns like bench/steps.py.

    python bench/full_steps.py MODEL.gguf --shape 1x512 --threads 2 --device cpu-bf16 --optimizer adafactor
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import common

options = common.steps_parser(__doc__, "numpy", "1x512")
options.add_argument("--threads", type=int, default=2)
options.add_argument("--dtype", default="auto")
options.add_argument("--optimizer", default="adamw")
options.add_argument("--warmup", type=int, default=1)
args = options.parse_args()

import anytune  # noqa: E402  (before NumPy: it chooses the BLAS kernels)
import numpy as np  # noqa: E402
from anytune.text.packing import MicroBatch  # noqa: E402

peak = common.Peak()
examples, length = map(int, args.shape.split("x"))
tokens = examples * length
model = anytune.load(args.model, device=args.device, threads=args.threads, dtype=args.dtype)
trainee = model.full_trainee(anytune.Full(optimizer=args.optimizer), ubatch=tokens, context=length)
ids = np.random.default_rng(1).integers(0, model.config.vocabulary, (examples, length))
batch = MicroBatch.of([(row, np.arange(length) >= length // 2) for row in ids])
step = 0


def turn() -> dict:
    """One whole step; update_cpu_s: of its CPU seconds those of norm and optimizer."""
    global step
    step += 1
    wall, cpu = time.perf_counter(), time.process_time()
    loss = float(trainee.accumulate(batch, 1 / batch.loss_tokens, step, 0)) / batch.loss_tokens
    half = time.process_time()
    trainee.update(1e-5, step)
    wall, end = time.perf_counter() - wall, time.process_time()
    return {
        "seconds": round(wall, 4),
        "tokens_per_s": round(tokens / wall, 1),
        "tokens_per_cpu_s": round(tokens / (end - cpu), 1),
        "update_cpu_s": round(end - half, 3),
        "loss": round(loss, 4),
    }


def end() -> dict:
    return {**peak.figures(), "estimate_mib": round(trainee.estimate.peak_bytes / common.MIB, 1)}


peak.mark()
for _ in range(args.warmup):
    turn()
common.serve({"who": "anytune", "engine": model.engine.name, "loss_tokens": batch.loss_tokens}, turn, end)
