"""
A training on a GPU that is killed (SIGKILL) in the middle and resumed, beside one that was left alone: the same bytes?

    python bench/resume_gpu.py                     # a tiny random model, 424 steps; under a minute on an H100
    python bench/resume_gpu.py --device cpu-torch --epochs 1
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import common
from tests.support import tiny

WORDS = ("red", "green", "blue", "one", "two", "three", "sun", "moon", "tree", "house")


def command(folder: Path, name: str, args, *more: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "anytune",
        "train",
        "-m",
        str(folder / "model.gguf"),
        "-f",
        str(folder / "text.txt"),
        "-c",
        "128",
        "-ub",
        str(args.ubatch),
        "-b",
        str(2 * args.ubatch),
        "--dtype",
        args.dtype,
        "--num-epochs",
        str(args.epochs),
        "--learning-rate",
        "1e-3",
        "--device",
        args.device,
        "--run-dir",
        str(folder / name),
        "--checkpoint-save-steps",
        "20",
        "--val-split",
        "0.05",
        "--output-adapter",
        str(folder / f"{name}.gguf"),
        "-q",
        *more,
    ]


def steps(folder: Path) -> int:
    """The last step in the run's metrics, 0 without any."""
    lines = [line for path in folder.rglob("metrics.jsonl") for line in path.read_text("utf-8").splitlines()]
    try:
        return json.loads(lines[-1])["step"] if lines else 0
    except json.JSONDecodeError:  # the last line is being written
        return 0


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    options.add_argument("--dtype", default="auto")
    options.add_argument("--ubatch", type=int, default=512, help="tokens of a micro-batch")
    options.add_argument("--device", default="cuda")
    options.add_argument("--epochs", type=int, default=2)
    options.add_argument("--no-save", action="store_true", help="print only; leave bench/results alone")
    args = options.parse_args()
    before, env = common.machine(), common.environment(8)
    with tempfile.TemporaryDirectory(prefix="anytune-bench-") as name:
        folder, draw = Path(name), random.Random(1)
        tiny.write(folder / "model.gguf", "qwen3", "Q8_0")
        (folder / "text.txt").write_text(
            "\n".join(" ".join(draw.choice(WORDS) for _ in range(40)) for _ in range(1500)), "utf-8"
        )
        subprocess.run(command(folder, "alone", args), env=env, check=True)
        total = steps(folder / "alone")
        killed = subprocess.Popen(command(folder, "killed", args), env=env)
        while killed.poll() is None and steps(folder / "killed") < 0.55 * total:
            time.sleep(0.02)
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        at = steps(folder / "killed")
        subprocess.run(command(folder, "killed", args, "--resume-from", "auto"), env=env, check=True)
        digests = {
            run: hashlib.sha256((folder / f"{run}.gguf").read_bytes()).hexdigest() for run in ("alone", "killed")
        }
    common.save(
        "resume_gpu",
        args,
        before,
        device=args.device,
        steps=total,
        killed_after=at,
        adapters=digests,
        equal=len(set(digests.values())) == 1,
    )


if __name__ == "__main__":
    main()
