"""Kill a training command at random moments, resume it, and compare its end with an uninterrupted run's.

Any command will do that continues by itself when started again (--resume auto with a --run-dir), so the same
harness proves a toy in seconds and a real model in minutes:

    python -m tests.train.kill_harness --kills 30 --first 3 --last 40 -- \\
        python -m anytune train -m model.gguf -f d.jsonl --checkpoint-save-steps 1 --resume-from auto \\
        --run-dir {run} --output-adapter {run}/out.gguf

{run} is replaced by a fresh folder for the uninterrupted and for the killed run. Compared: out.gguf (or the
file named by --compare), byte by byte, and metrics.jsonl without its columns of time and memory.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

UNTIMED = ("step", "epoch", "loss", "val_loss", "lr", "grad_norm", "tokens", "loss_tokens")


def deterministic_rows(metrics: Path) -> list[list]:
    """metrics.jsonl without what may differ between two runs of the same training."""
    return [[json.loads(line)[name] for name in UNTIMED] for line in metrics.read_text().splitlines()]


def same_end(one: Path, other: Path, compare: str) -> str | None:
    """None if both run folders ended alike, else what differs."""
    if (one / compare).read_bytes() != (other / compare).read_bytes():
        return f"{compare} differs"
    if deterministic_rows(one / "metrics.jsonl") != deterministic_rows(other / "metrics.jsonl"):
        return "metrics.jsonl differs"
    return None


def survive(command: list[str], run: Path, kills: int, moment, limit: int = 10_000) -> int:
    """Start the command again and again, SIGKILL each life after moment() seconds, then let it end.

    Returns the number of lives that were really cut short; a command that ends by itself too soon starts the
    count anew only if the caller says so. Raises RuntimeError if a life fails instead of being killed.
    """
    done = 0
    for _ in range(limit):
        process = subprocess.Popen(
            [part.replace("{run}", str(run)) for part in command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        try:
            _, errors = process.communicate(timeout=moment() if done < kills else None)
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.communicate()
            done += 1
            continue
        if process.returncode != 0:
            raise RuntimeError(f"exit code {process.returncode}: {errors.decode(errors='replace')[-2000:]}")
        return done
    raise RuntimeError("the command never came to its end")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--first", type=float, default=0.2, help="earliest moment of a kill, seconds")
    parser.add_argument("--last", type=float, default=5.0, help="latest moment of a kill, seconds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compare", default="out.gguf")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        calm = Path(folder) / "calm"
        survive(command, calm, 0, lambda: None)
        kills, trial = 0, 0
        while kills < args.kills:
            run = Path(folder) / f"killed{trial}"
            kills += survive(command, run, args.kills - kills, lambda: rng.uniform(args.first, args.last))
            problem = same_end(calm, run, args.compare)
            if problem:
                print(f"run {trial}: {problem}", file=sys.stderr)
                return 1
            trial += 1
        print(f"{kills} kills over {trial} runs: every one ended in the uninterrupted run's bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
