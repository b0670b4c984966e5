"""Contestant: training steps and decoding of anytune through WebGPU, on random tokens.

    python bench/webgpu_steps.py MODEL.gguf --shape 1x128 [--rank 8] [--max-binding 16MiB] [--profile]
    python bench/webgpu_steps.py MODEL.gguf --decode

Prints one JSON line. Training: tokens/s of each round (a round is several whole optimizer steps, the last of which is
waited for), the CPU's part of a step, the estimate of memory beside the measured peak, losses, what tile autotuning
chose, and with --profile the time of each kernel when its dispatches of a step are run alone. Decoding: tokens/s at
batch 1.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import common

options = common.steps_parser(__doc__, "webgpu", "1x128")
options.add_argument("--rank", type=int, default=8)
options.add_argument("--memory", help="such as 6GiB, or 1.3x: of the weights' bytes")
options.add_argument("--max-binding", help="such as 16MiB: what ANYTUNE_MAX_BINDING says")
options.add_argument("--rounds", type=int, default=7)
options.add_argument("--seconds", type=float, default=1.0, help="of a round, about")
options.add_argument("--profile", action="store_true")
options.add_argument("--decode", action="store_true")
args = options.parse_args()
if args.max_binding:
    os.environ["ANYTUNE_MAX_BINDING"] = args.max_binding

import numpy as np  # noqa: E402

import anytune  # noqa: E402
from anytune.gguf import GGUF  # noqa: E402
from anytune.memory import parse_bytes  # noqa: E402
from anytune.text.packing import MicroBatch  # noqa: E402

started, limit = time.perf_counter(), None
if args.memory and args.memory.endswith("x"):
    with GGUF.open(args.model) as gguf:
        limit = int(float(args.memory[:-1]) * sum(t.nbytes for t in gguf.tensors.values() if len(t.shape) > 1))
elif args.memory:
    limit = parse_bytes(args.memory)
model = anytune.load(args.model, device=args.device, memory=limit)
e, random = model.engine, np.random.default_rng(1)
read = sum(m.nbytes for m in model.weights.matrices.values())
result = {
    "device": e.device.name,
    "driver": e.device.info.get("description"),
    "max_binding": e.device.max_binding,
    "weights_gib": round(read / 2**30, 3),
}


def train() -> dict:
    examples, length = map(int, args.shape.split("x"))
    tokens = examples * length
    trainee = model.trainee(anytune.Lora(rank=args.rank, alpha=2.0 * args.rank), ubatch=tokens, context=length)
    batches = [
        MicroBatch.of(
            [
                (row, np.arange(length) >= length // 2)
                for row in random.integers(0, model.config.vocabulary, (examples, length))
            ]
        )
        for _ in range(4)
    ]
    step, losses, asked = 0, [], []

    def take(count: int) -> float:
        """Seconds for `count` optimizer steps, up to the moment when the last one's outcome is known."""
        nonlocal step
        e.commands.flush()
        e.device.wait()
        begin, on_cpu = time.perf_counter(), time.process_time()
        for _ in range(count):
            step += 1
            batch = batches[step % len(batches)]
            loss = trainee.accumulate(batch, 1 / batch.loss_tokens, step, 0)
            norm = trainee.update(1e-4, step)
        asked.append((time.process_time() - on_cpu) / count)
        losses.append(float(loss) / batch.loss_tokens)
        float(norm)
        return time.perf_counter() - begin

    warm = [take(1) for _ in range(3)]
    ready = time.perf_counter() - started
    count = max(2, round(args.seconds / take(2) * 2))
    before = e.commands.dispatches, e.commands.submits
    times = [take(count) / count for _ in range(args.rounds)]
    middle, steps = statistics.median(times), args.rounds * count
    return {
        "shape": args.shape,
        "rank": args.rank,
        "tokens_per_s": round(tokens / middle, 1),
        "ms_per_step": round(middle * 1e3, 3),
        "rounds_tokens_per_s": [round(tokens / t, 1) for t in times],
        "steps_per_round": count,
        "cpu_ms_per_step": round(statistics.median(asked[-args.rounds :]) * 1e3, 3),
        "dispatches_per_step": round((e.commands.dispatches - before[0]) / steps, 1),
        "submits_per_step": round((e.commands.submits - before[1]) / steps, 1),
        "peak_gib": round(e.device.peak / 2**30, 3),
        "peak_over_weights": round(e.device.peak / read, 3),
        "estimate_gib": round(trainee.estimate.peak_bytes / 2**30, 3),
        "how": trainee.estimate.text,
        "seconds_to_ready": round(ready, 1),
        "first_steps_s": [round(t, 2) for t in warm],
        "loss": [round(x, 4) for x in losses[:3] + losses[-1:]],
        "memory": args.memory,
        "tiles": [
            {"forward": f, "many": m, "tile": tile.name, "workgroups": groups}
            for (f, m), (tile, groups) in sorted(e.tuning.choices.items(), reverse=True)
        ],
    }


def profile(tape: list) -> list[dict]:
    """Milliseconds of each kernel's dispatches of one tape: each kernel alone, repeated so that the clocks stay up."""
    kernels: dict[str, list] = {}
    for command in tape:
        if isinstance(command, tuple):
            kernels.setdefault(command[7][0], []).append(command)

    def once(commands: list, times: int) -> float:
        e.device.wait()
        begin = time.perf_counter()
        for _ in range(times):
            e.device.submit(commands)
        e.device.wait()
        return (time.perf_counter() - begin) / times

    rows = []
    for name, commands in kernels.items():
        several = max(1, 100 // len(commands))  # or a submit would be what is measured
        commands = commands * several
        count = max(2, min(200, round(0.03 / once(commands, 2))))
        best = min(once(commands, count) for _ in range(3)) / several
        cost = sum(c[5] for c in commands) / several
        rows.append(
            {
                "kernel": name,
                "ms": round(best * 1e3, 3),
                "calls": len(commands) // several,
                "tflops": round(cost / best / 1e12, 2),
            }
        )
    return sorted(rows, key=lambda row: -row["ms"])


def decode(prefix: int = 128, tokens: int = 64) -> dict:
    decoder = model.decoder(batch=1, context=1024)
    ids = random.integers(0, model.config.vocabulary, prefix + args.rounds * tokens + 8).tolist()
    begin = time.perf_counter()
    decoder.feed([ids[:prefix]])
    first = time.perf_counter() - begin
    for at in range(prefix, prefix + 4):
        decoder.feed([[ids[at]]])
    times = []
    for number in range(args.rounds):
        begin = time.perf_counter()
        for at in range(prefix + 4 + number * tokens, prefix + 4 + (number + 1) * tokens):
            decoder.feed([[ids[at]]])
        times.append((time.perf_counter() - begin) / tokens)
    middle = statistics.median(times)
    return {
        "batch": 1,
        "tokens_per_s": round(1 / middle, 1),
        "ms_per_token": round(middle * 1e3, 4),
        "rounds_ms": [round(t * 1e3, 4) for t in times],
        "prompt_s": round(first, 3),
        "read_gb_per_s": round(read / middle / 1e9),
        "peak_gib": round(e.device.peak / 2**30, 3),
    }


result |= decode() if args.decode else train()
if args.profile:
    recorded = (
        e.tokens.known.values() if args.decode else [r for name, r in e.recorder.known.items() if name[0] == "train"]
    )
    result["kernels"] = profile(list(recorded)[-1].tape)
print(json.dumps(result), flush=True)
