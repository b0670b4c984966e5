"""Contestant: training steps of anytune on random tokens, half of them with loss (one optimizer step a turn).

    python bench/steps.py MODEL.gguf --shape 4x128 --threads 2 --turns 5

Prints one JSON line when it is ready, one for each turn, one at the end. Without --turns it waits for lines on
stdin, so that another contestant can take its turns in between.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import common

options = common.steps_parser(__doc__, "numpy", "4x128")
options.add_argument("--threads", type=int, default=2)
options.add_argument("--rank", type=int, default=16)
options.add_argument("--memory", help="such as 300MiB")
options.add_argument("--warmup", type=int, default=2)
options.add_argument("--turns", type=int)
args = options.parse_args()

import anytune  # noqa: E402  (before NumPy: it chooses the BLAS kernels)
from anytune.benchmark.cases import Test  # noqa: E402
from anytune.benchmark.work import Training  # noqa: E402
from anytune.cli.options import SIZE  # noqa: E402

peak = common.Peak()
examples, length = map(int, args.shape.split("x"))
model = anytune.load(
    args.model,
    device=args.device,
    threads=args.threads,
    memory=SIZE.convert(args.memory, None, None) if args.memory else None,
)
try:
    training = Training(model, Test("train", length, examples), args.rank)
except anytune.UserError as error:  # --memory is too little: that is an answer, too
    print(json.dumps({"refused": str(error)}), flush=True)
    sys.exit(0)


def turn() -> dict:
    """One whole optimizer step: forward, backward, clipping, AdamW."""
    wall, cpu, read, tokens = time.perf_counter(), time.process_time(), common.bytes_read(), examples * length
    float(training.take())
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {
        "seconds": round(wall, 4),
        "tokens_per_s": round(tokens / wall, 1),
        "tokens_per_cpu_s": round(tokens / cpu, 1),
        "loss": round(training.mean_loss(), 4),
        "bytes_read": common.bytes_read() - read,
    }


def end() -> dict:
    return {
        **peak.figures(),
        "estimate_mib": round(training.estimate.peak_bytes / common.MIB, 1),
        "estimate_text": training.estimate.text,
        "flops_per_token": training.estimate.flops_per_token,
    }


peak.mark()
for _ in range(args.warmup):
    turn()
if args.turns is not None:
    common.serve_rounds(args.turns, turn, end)
else:
    common.serve({"who": "anytune", "engine": model.engine.name, "loss_tokens": training.loss_tokens}, turn, end)
