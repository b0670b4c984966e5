"""Contestant: training steps of anytune on a GPU, on random tokens, the second half of each example with loss.

    python bench/gpu_steps.py MODEL.gguf --shape 8x1024 [--memory 6GiB] [--rank 16] [--profile]

Prints one JSON line: tokens/s of each round (a round is several whole optimizer steps, the last of which is waited
for), the estimate of memory beside the measured peak, losses, and with --profile the time of a step by kernel.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import common

options = common.steps_parser(__doc__, "cuda", "8x1024")
options.add_argument("--dtype", default="auto")
options.add_argument("--rank", type=int, default=16)
options.add_argument("--memory", help="such as 6GiB")
options.add_argument("--rounds", type=int, default=7)
options.add_argument("--seconds", type=float, default=1.0, help="of a round, about")
options.add_argument("--profile", action="store_true")
args = options.parse_args()

import numpy as np  # noqa: E402
import torch  # noqa: E402

import anytune  # noqa: E402
from anytune.memory import parse_bytes  # noqa: E402
from anytune.text.packing import MicroBatch  # noqa: E402

started = time.perf_counter()
examples, length = map(int, args.shape.split("x"))
tokens = examples * length
model = anytune.load(
    args.model, device=args.device, dtype=args.dtype, memory=parse_bytes(args.memory) if args.memory else None
)
trainee = model.trainee(anytune.Lora(rank=args.rank, alpha=2.0 * args.rank), ubatch=tokens, context=length)
random = np.random.default_rng(1)
batches = [
    MicroBatch.of(
        [
            (row, np.arange(length) >= length // 2)
            for row in random.integers(0, model.config.vocabulary, (examples, length))
        ]
    )
    for _ in range(4)
]
step, losses = 0, []


def take(count: int) -> float:
    """Seconds for `count` optimizer steps, up to the moment when the last one's outcome is known."""
    global step
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(count):
        step += 1
        batch = batches[step % len(batches)]
        loss = trainee.accumulate(batch, 1 / batch.loss_tokens, step, 0)
        norm = trainee.update(1e-4, step)
    losses.append(float(loss) / batch.loss_tokens)
    float(norm)
    return time.perf_counter() - begin


warm = [take(1) for _ in range(3)]
ready = time.perf_counter() - started
count = max(2, round(args.seconds / take(2) * 2))
times = [take(count) / count for _ in range(args.rounds)]
middle = statistics.median(times)
result = {
    "shape": args.shape,
    "rank": args.rank,
    "tokens_per_s": round(tokens / middle, 1),
    "ms_per_step": round(middle * 1e3, 3),
    "rounds_tokens_per_s": [round(tokens / t, 1) for t in times],
    "steps_per_round": count,
    "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 3),
    "reserved_gib": round(torch.cuda.max_memory_reserved() / 2**30, 3),
    "estimate_gib": round(trainee.estimate.peak_bytes / 2**30, 3),
    "how": trainee.estimate.text,
    "seconds_to_ready": round(ready, 1),
    "first_steps_s": [round(t, 2) for t in warm],
    "loss": [round(x, 4) for x in losses[:3] + losses[-1:]],
    "memory": args.memory,
}
if args.profile:
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        take(3)
    rows = [
        (e.key, e.self_device_time_total / 3e3, e.count // 3) for e in seen.key_averages() if e.self_device_time_total
    ]
    rows.sort(key=lambda row: -row[1])
    result["kernels"] = [{"kernel": name[:90], "ms": round(ms, 3), "calls": calls} for name, ms, calls in rows[:40]]
    result["device_ms"] = round(sum(row[1] for row in rows), 2)
print(json.dumps(result), flush=True)
