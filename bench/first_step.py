"""From starting `anytune train` on SmolLM2 to the beginning and the end of its first step, caches warm.

    python bench/first_step.py

The beginning is taken from outside: when the first row of metrics.jsonl was written, less that step's own time.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import cli
import common

args = common.parser(__doc__, rounds=5).parse_args()
before = common.machine()
model = str(common.model_file(args.model))
TRAIN = ["-f", "examples/email/train.jsonl", "--assistant-loss-only", "-c", 512, "-ub", 512, "-b", 512]
TRAIN += ["--max-steps", 1, "--threads", args.threads, "-m", model]
rounds = []
with tempfile.TemporaryDirectory(prefix="anytune-bench-") as folder:
    for number in range(args.rounds + 1):  # the first one warms compiled kernels and the page cache
        run = cli.train(TRAIN, Path(folder, f"run-{number}"), common.environment(args.threads))
        row = run["rows"][0]
        step = row["tokens"] / row["tokens_per_s"]
        rounds.append(
            {
                "first_step_begins_s": round(run["written"] - step, 2),
                "first_step_ends_s": round(run["written"], 2),
                "tokens": row["tokens"],
            }
        )
common.save(
    "first_step",
    args,
    before,
    model=Path(model).stem,
    threads=args.threads,
    first_step_begins_s=common.median(r["first_step_begins_s"] for r in rounds[1:]),
    first_step_ends_s=common.median(r["first_step_ends_s"] for r in rounds[1:]),
    warming_round=rounds[0],
    rounds=rounds[1:],
)
