"""Contestant: one of the processes of a training with several, on random tokens, the second half of each with loss.

    python bench/process_group_steps.py MODEL.gguf --shape 8x1024 [--memory 2GiB] [--shard] [--whole]

Alone, or as many as torchrun's variables say. Process 0 prints one JSON line: the loss curve of global batches of
--micro micro-batches (however many processes share them out), tokens/s with one micro-batch a process and step, the
time of one sum of all gradients, memory. A training that does not fit gives {"refused": why}.
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
options.add_argument("--rank", type=int, default=16)
options.add_argument("--dtype", default="auto")
options.add_argument("--memory", help="of each process, such as 2GiB")
options.add_argument("--shard", action="store_true")
options.add_argument("--whole", action="store_true", help="only with all of the base on the device")
options.add_argument("--micro", type=int, default=2)
options.add_argument("--steps", type=int, default=20, help="of the loss curve")
options.add_argument("--rounds", type=int, default=7)
options.add_argument("--seconds", type=float, default=1.0, help="of a round, about")
args = options.parse_args()

import numpy as np  # noqa: E402
import torch  # noqa: E402

import anytune  # noqa: E402
from anytune.engine.torch import budget  # noqa: E402
from anytune.errors import UserError  # noqa: E402
from anytune.memory import parse_bytes, peak_bytes  # noqa: E402
from anytune.text.packing import MicroBatch  # noqa: E402
from anytune.train.together import join_group  # noqa: E402
from anytune.distributed.environment import local_device  # noqa: E402

started = time.perf_counter()
examples, length = map(int, args.shape.split("x"))
if args.whole:
    budget.HOLDS = tuple(hold for hold in budget.HOLDS if hold[0] != "stream")
model = anytune.load(
    args.model,
    device=local_device(args.device),
    dtype=args.dtype,
    memory=parse_bytes(args.memory) if args.memory else None,
)
process_group = join_group(model.engine, args.shard)
try:
    trainee = model.trainee(
        anytune.Lora(rank=args.rank, alpha=2.0 * args.rank), ubatch=examples * length, context=length
    )
except UserError as error:
    if process_group.rank == 0:
        print(json.dumps({"refused": str(error)}), flush=True)
    process_group.close()
    sys.exit()
random = np.random.default_rng(1)
batches = [
    MicroBatch.of(
        [
            (row, np.arange(length) >= length // 2)
            for row in random.integers(0, model.config.vocabulary, (examples, length))
        ]
    )
    for _ in range(2 * args.micro)
]
loss_tokens, step = batches[0].loss_tokens, 0


def global_step() -> float:
    """One step of a global batch -> its loss, the same on all processes."""
    global step
    step += 1
    losses = [0.0] * args.micro
    for micro in process_group.share(range(args.micro)):
        batch = batches[(step * args.micro + micro) % len(batches)]
        losses[micro] = trainee.accumulate(batch, 1 / (args.micro * loss_tokens), step, micro)
    trainee.update(1e-3, step)
    return sum(process_group.all_reduce([float(loss) for loss in losses])) / (args.micro * loss_tokens)


def take(count: int) -> float:
    """Seconds for `count` steps of one micro-batch a process, until the last one's outcome is known."""
    global step
    wait()
    begin = time.perf_counter()
    for _ in range(count):
        step += 1
        trainee.accumulate(
            batches[(step * process_group.size + process_group.rank) % len(batches)],
            1 / (process_group.size * loss_tokens),
            step,
            process_group.rank,
        )
        norm = trainee.update(1e-4, step)
    float(norm)
    return time.perf_counter() - begin


def summing() -> float:
    """Seconds for one sum of all gradients over the processes."""
    wait()
    begin = time.perf_counter()
    process_group.all_reduce_(trainee.gradients)
    wait(False)
    return time.perf_counter() - begin


def wait(others: bool = True) -> None:
    """For the device, and for the other processes."""
    if model.engine.device.type == "cuda":
        torch.cuda.synchronize()
    if others:
        process_group.barrier()


if args.micro % process_group.size:
    raise SystemExit(f"--micro {args.micro} cannot be shared out evenly between {process_group.size} processes")
curve = [global_step() for _ in range(args.steps)]
warm = [take(1) for _ in range(3)]
ready = time.perf_counter() - started
count = process_group.broadcast(max(2, round(args.seconds / take(2) * 2)))
times = [take(count) / count for _ in range(args.rounds)]
sums = [summing() for _ in range(12)][2:] if process_group.size > 1 else []
tokens = process_group.size * examples * length
cuda = model.engine.device.type == "cuda"
result = {
    "processes": process_group.size,
    "sharded": process_group.sharded,
    "tokens_per_s": round(tokens / statistics.median(times), 1),
    "ms_per_step": round(1e3 * statistics.median(times), 3),
    "steps_per_round": count,
    "rounds_tokens_per_s": [round(tokens / t, 1) for t in times],
    "peak_gib": round((model.engine.peak() if cuda else peak_bytes()) / 2**30, 3),
    "estimate_gib": round(trainee.estimate.peak_bytes / 2**30, 3),
    "how": trainee.estimate.text,
    "memory": args.memory,
    "gradients_mib": round(4 * trainee.n_parameters / 2**20, 1),
    "seconds_to_ready": round(ready, 1),
    "sum_of_gradients_ms": round(1e3 * statistics.median(sums), 3) if sums else None,
    "loss_curve": [round(loss, 6) for loss in curve],
}
process_group.close()
if process_group.rank == 0:
    print(json.dumps(result), flush=True)
