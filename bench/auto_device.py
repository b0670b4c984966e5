"""The demo's training on numpy and on what --device auto takes here, in turns: tokens a second from metrics.jsonl.

    python bench/auto_device.py

The demo's data and settings, as a newcomer's machine runs them; the first round warms compiled kernels and is left out.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import cli
import common

STEPS = 4
TRAIN = ["-f", "examples/email/train.jsonl", "-c", 512, "-ub", 512, "-b", 1024, "--lora-rank", 16]
TRAIN += ["--learning-rate", "1e-3", "--warmup-steps", 3, "--max-steps", STEPS]

args = common.parser(__doc__, rounds=3).parse_args()
before = common.machine()
model = str(common.model_file(args.model))
rates: dict[str, list[float]] = {"numpy": [], "auto": []}
taken: dict[str, str] = {}
losses: dict[str, list[float]] = {}
with tempfile.TemporaryDirectory(prefix="anytune-bench-") as folder:
    for number in range(args.rounds + 1):
        for device, found in rates.items():
            place = Path(folder, f"{device}-{number}")
            run = cli.train(
                [*TRAIN, "-m", model, "--threads", args.threads, "--device", device],
                place,
                common.environment(args.threads),
            )
            losses[device] = [round(row["loss"], 4) for row in run["rows"]]
            log = (place / "train.log").read_text("utf-8")
            taken[device] = log.partition("Device: ")[2].splitlines()[0]
            if number:
                found.append(round(common.median(row["tokens_per_s"] for row in run["rows"][1:]), 1))
middle = {device: common.median(found) for device, found in rates.items()}
common.save(
    "auto_device",
    args,
    before,
    model=Path(model).stem,
    threads=args.threads,
    taken=taken,
    losses=losses,
    tokens_per_s=middle,
    ratio=round(middle["auto"] / middle["numpy"], 2),
    rounds=rates,
)
print(json.dumps(middle))
