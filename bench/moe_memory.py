"""A mixture of experts of 30B weights on a CPU within a few GiB: experts are streamed from the file.

    python bench/moe_memory.py [--memory 8GiB] [--tokens 128] [--steps 2]

Qwen3-30B-A3B's shape, random Q4_K blocks (16 GiB on disk, in --folder), LoRA r=16 on attention. Read is what the
process asked the system for, much of which may come from the page cache; from the disk is what the disk gave. Pages
that the cache still holds from writing the file are given up before.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import common
import experts

CHILD = """
import json, sys, time
import numpy as np
import anytune
from anytune.memory import peak_bytes, parse_bytes
from anytune.text.packing import MicroBatch

path, memory, tokens, steps, device, threads = sys.argv[1:]
tokens, steps = int(tokens), int(steps)
def read():
    found = dict(line.split(": ") for line in open("/proc/self/io").read().splitlines())
    return int(found["rchar"]), int(found["read_bytes"])
model = anytune.load(path, device=device, memory=parse_bytes(memory), threads=int(threads))
trainee = model.trainee(anytune.Lora(rank=16, alpha=32.0), ubatch=tokens, context=tokens)
random, times, asked, disk, losses = np.random.default_rng(1), [], [], [], []
for step in range(1, steps + 1):
    ids = random.integers(0, model.config.vocabulary, tokens)
    batch = MicroBatch.of([(ids, np.arange(tokens) >= tokens // 2)])
    before, begin, cpu = read(), time.perf_counter(), time.process_time()
    loss = trainee.accumulate(batch, 1 / batch.loss_tokens, step, 0)
    trainee.update(1e-4, step)
    now = read()
    times.append((round(time.perf_counter() - begin, 1), round(time.process_time() - cpu, 1)))
    asked.append(now[0] - before[0]); disk.append(now[1] - before[1]); losses.append(float(loss) / batch.loss_tokens)
    print(step, times[-1], trainee.loads(), file=sys.stderr, flush=True)
print(json.dumps({
    "s_per_step": [t for t, _ in times], "cpu_s_per_step": [c for _, c in times],
    "mib_read_per_step": [n >> 20 for n in asked], "mib_from_disk_per_step": [n >> 20 for n in disk],
    "peak_mib": peak_bytes() >> 20, "estimate_mib": trainee.estimate.peak_bytes >> 20,
    "how": trainee.estimate.text, "loss": [round(x, 4) for x in losses], "device": model.engine.name,
}))
"""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    options.add_argument("--model", default="qwen3-30b-a3b", choices=experts.SHAPES)
    options.add_argument("--memory", default="8GiB")
    options.add_argument("--tokens", type=int, default=128, help="of a step")
    options.add_argument("--steps", type=int, default=2)
    options.add_argument("--device", default="numpy")
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--folder", help="where the model file goes; default: a temporary one")
    options.add_argument("--no-save", action="store_true", help="print only; leave bench/results alone")
    args = options.parse_args()
    before = common.machine()
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="anytune-bench-") as place:
        path, script = Path(place) / "model.gguf", Path(place) / "child.py"
        script.write_text(CHILD)
        begin = time.monotonic()
        experts.write_model(path, args.model)
        written = round(time.monotonic() - begin, 1)
        with open(path, "rb") as file:  # what the cache holds of it would flatter the disk
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        size = path.stat().st_size >> 20
        print(f"{size} MiB written in {written} s", flush=True)
        more = [args.memory, str(args.tokens), str(args.steps), args.device, str(args.threads)]
        row = common.run_once([str(script), str(path), *more], common.environment(1))
    facts = {"model": args.model, "file_mib": size, "memory": args.memory, "tokens": args.tokens}
    print(json.dumps(row))
    common.save("moe_memory", args, before, **facts, result=row)


if __name__ == "__main__":
    main()
