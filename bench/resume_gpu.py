"""
A training on a GPU that is killed (SIGKILL) in the middle and resumed, beside one that was left alone: the same bytes?

    python bench/resume_gpu.py                     # a tiny random model, 424 steps; under a minute on an H100
    python bench/resume_gpu.py --device cpu-torch --epochs 1
    python bench/resume_gpu.py --dtype fp8 --ubatch 1024  # into resume_gpu_fp8.json; fp8 begins at 513 tokens
    python bench/resume_gpu.py --gpus 2            # a rank of two is killed; one card goes on

With --gpus the killed run has so many processes, of which the last one is killed. What the others say is kept, and one
process resumes. Sums of several processes round differently, so the loss curves are compared, not the bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import common
from tests.support import tiny

WORDS = ("red", "green", "blue", "one", "two", "three", "sun", "moon", "tree", "house")


def command(folder: Path, name: str, args, *more: str) -> list[str]:
    words = ["train", "-m", folder / "model.gguf", "-f", folder / "text.txt", "-c", 128, "-ub", args.ubatch]
    words += ["-b", 2 * args.ubatch, "--dtype", args.dtype, "--num-epochs", args.epochs, "--learning-rate", "1e-3"]
    words += ["--device", args.device, "--run-dir", folder / name, "--checkpoint-save-steps", 20, "--val-split", 0.05]
    return common.anytune(*words, "--output-adapter", folder / f"{name}.gguf", "-q", *more)


def steps(folder: Path) -> int:
    """The last step in the run's metrics, 0 without any."""
    lines = [line for path in folder.rglob("metrics.jsonl") for line in path.read_text("utf-8").splitlines()]
    try:
        return json.loads(lines[-1])["step"] if lines else 0
    except json.JSONDecodeError:  # the last line is being written
        return 0


def kill(run: subprocess.Popen, gpus: int) -> None:
    """The run itself, or the last of its processes."""
    victim = run.pid
    if gpus > 1:
        victim = max(map(int, Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()))
    os.kill(victim, signal.SIGKILL)


def curve(folder: Path) -> dict[int, float]:
    """The loss of each step."""
    lines = [line for path in folder.rglob("metrics.jsonl") for line in path.read_text("utf-8").splitlines()]
    rows = [json.loads(line) for line in lines]
    return {row["step"]: row["loss"] for row in rows if row.get("loss") is not None}


def main() -> None:
    options = common.saving(__doc__)
    options.add_argument("--dtype", default="auto")
    options.add_argument("--ubatch", type=int, default=512, help="tokens of a micro-batch")
    options.add_argument("--device", default="cuda")
    options.add_argument("--epochs", type=int, default=2)
    options.add_argument("--gpus", type=int, default=1, help="processes of the run that is killed")
    options.add_argument("--shard", action="store_true", help="share the base's weights between them")
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
        more = ["--gpus", str(args.gpus)] if args.gpus > 1 else []
        more += ["--shard"] if args.shard else []
        killed = subprocess.Popen(command(folder, "killed", args, *more), env=env, stderr=subprocess.PIPE, text=True)
        while killed.poll() is None and steps(folder / "killed") < 0.55 * total:
            time.sleep(0.02)
        kill(killed, args.gpus)
        begun = time.perf_counter()
        said = killed.communicate(timeout=120)[1].strip().splitlines()
        ended, at = round(time.perf_counter() - begun, 1), steps(folder / "killed")
        subprocess.run(command(folder, "killed", args, "--resume-from", "auto"), env=env, check=True)
        digests = {
            run: hashlib.sha256((folder / f"{run}.gguf").read_bytes()).hexdigest() for run in ("alone", "killed")
        }
        one, two = curve(folder / "alone"), curve(folder / "killed")
    apart = max(abs(two[step] - loss) / loss for step, loss in one.items())
    common.save(
        "resume_gpu",
        args,
        before,
        into="resume_two_gpus" if args.gpus > 1 else "resume_gpu" + f"_{args.dtype}" * (args.dtype != "auto"),
        device=args.device,
        gpus=args.gpus,
        sharded=args.shard,
        steps=total,
        killed_after=at,
        said=said[-3:],
        exit_code=killed.returncode,
        seconds_to_end=ended,
        adapters=digests,
        equal=len(set(digests.values())) == 1,
        loss_curves_apart=common.rounded(apart, 2),
    )


if __name__ == "__main__":
    main()
