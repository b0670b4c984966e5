"""Training with the hardware cores' arithmetic beside float32: gradients, the losses of every step, speed, llama.cpp.

    python bench/fpga_sim.py                   # SmolLM2-135M in Q4_0, 60 steps of 128 tokens
    python bench/fpga_sim.py --speed           # eight steps of the cores' arithmetic alone, on a quiet machine

Whole runs of `anytune train` on the e-mails of examples/email from the same start, with --device fpga-sim and --device
numpy. The gradient is compared at an adapter that float32 has trained for some steps (at the start B is zero, and so is
A's gradient). The adapter of fpga-sim is compared in llama.cpp with what --device numpy computes, as `anytune verify`
does it.
"""

from __future__ import annotations

import json
import resource
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import common

DEVICES = ("numpy", "fpga-sim")
DATA = "examples/email/train.jsonl"
BATCHES = 4
WITHIN, COSINE, RATE = 0.01, 0.995, 20.0  # of each step's loss; of the gradient; tokens a second


def quantized(source: Path, folder: Path, kind: str) -> Path:
    """The model with every matrix in `kind`."""
    from anytune.quantization import quantize

    made = folder / f"model-{kind}.gguf"
    quantize(source, made, kind, pure=True, requantize=True, output=kind, embedding=kind)
    return made


def train(model: Path, folder: Path, device: str, steps: int, args, *more: str) -> dict[str, Any]:
    """Leaves folder/DEVICE.gguf; -> losses of every step, tokens and what they took. A run that is there is taken."""
    out, before, start = folder / f"{device}.gguf", resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    took = folder / f"took-{device}-{steps}.json"
    if took.exists():
        return json.loads(took.read_text("utf-8"))
    words = ["train", "-m", model, "-f", DATA, "--assistant-loss-only", "--device", device, "-t", args.threads]
    words += ["-c", args.context, "-ub", args.context, "-b", args.context, "--lr", "5e-4", "--epochs", 100]
    words += ["--max-steps", steps, "--run-dir", folder / f"run-{device}-{steps}", "-o", out, "-q", *more]
    subprocess.run(common.anytune(*words), env=common.environment(args.threads), cwd=common.ROOT, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    (metrics,) = (folder / f"run-{device}-{steps}").rglob("metrics.jsonl")
    rows = [json.loads(line) for line in metrics.read_text("utf-8").splitlines()]
    rates = [row["tokens_per_s"] for row in rows if row.get("tokens_per_s")]
    found = {
        "losses": [row["loss"] for row in rows if row.get("loss") is not None],
        "tokens_per_second": common.rounded(common.median(rates)) if rates else None,
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
    }
    took.write_text(json.dumps(found), "utf-8")
    return found


def gradients(model: Path, adapter: Path, device: str, args) -> list[Any]:
    """Of the first micro-batches' mean losses at the adapter: float32, every pair's."""
    import numpy as np

    import anytune
    from anytune.adapter.adapter import Adapter
    from anytune.text import build_dataset, make_batch, pack

    loaded = anytune.load(model, device=device, threads=args.threads)
    trainee = loaded.trainee(anytune.Lora(), Adapter.load(adapter, gguf=loaded.gguf), ubatch=args.context)
    data = build_dataset(common.ROOT / DATA, loaded.tokenizer, loaded.template, context=args.context, loss="assistant")
    found = []
    for indexes in pack(data, args.context, 1, 0)[:BATCHES]:
        trainee.gradients[:] = 0
        trainee.accumulate(make_batch(data, indexes), 1.0, 1, 0)
        found.append(np.array(trainee.gradients, np.float64))
    return found


def kept_gradients(model: Path, adapter: Path, device: str, args, folder: Path) -> list[Any]:
    import numpy as np

    path = folder / f"gradients-{device}.npy"
    if not path.exists():
        np.save(path, gradients(model, adapter, device, args))
    return list(np.load(path))


def cosine(a: Any, b: Any) -> float:
    return round(float(a @ b / ((a @ a) * (b @ b)) ** 0.5), 5)


def speed(before: dict[str, Any], args) -> None:
    with tempfile.TemporaryDirectory(prefix="anytune-bench-") as name:
        model = quantized(common.model_file(args.model), Path(name), args.type)
        run = train(model, Path(name), "fpga-sim", 8, args)
    common.save(
        "fpga_sim",
        args,
        before,
        "fpga_sim_speed",
        type=args.type,
        tokens_a_step=args.context,
        tokens_per_second=run["tokens_per_second"],
        holds=run["tokens_per_second"] >= RATE,
        run=run,
    )


def main() -> None:
    options = common.parser(__doc__)
    options.add_argument("--steps", type=int, default=60)
    options.add_argument("--context", type=int, default=128, help="tokens of a step")
    options.add_argument("--type", default="Q4_0", help="what every matrix is quantized to")
    options.add_argument("--work", type=Path, help="keep the pieces here; those that are there are not run again")
    options.add_argument("--speed", action="store_true", help="eight steps with fpga-sim, nothing else")
    args = options.parse_args()
    before = common.machine()
    if args.speed:
        return speed(before, args)
    with tempfile.TemporaryDirectory(prefix="anytune-bench-") as name:
        folder = args.work or Path(name)
        model = quantized(common.model_file(args.model), folder, args.type)
        start = folder / "start.gguf"
        if not start.exists():
            train(model, folder, "numpy", 10, args)
            (folder / "numpy.gguf").rename(start)
        exact, ours = (kept_gradients(model, start, device, args, folder) for device in DEVICES)
        cosines = [cosine(a, b) for a, b in zip(exact, ours, strict=True)]
        runs = {device: train(model, folder, device, args.steps, args) for device in DEVICES}
        done = subprocess.run(
            common.anytune("verify", "-m", model, "--lora", folder / "fpga-sim.gguf", "--json"),
            env=common.environment(args.threads),
            cwd=common.ROOT,
            text=True,
            capture_output=True,
        )
    one, two = (runs[device]["losses"] for device in DEVICES)
    apart = [abs(a - b) / a for a, b in zip(one, two, strict=True)]
    told = json.loads(done.stdout)
    common.save(
        "fpga_sim",
        args,
        before,
        type=args.type,
        tokens_a_step=args.context,
        steps=len(one),
        cosine=cosines[0],
        cosines=cosines,
        cosine_holds=cosines[0] >= COSINE,
        most_apart=common.rounded(max(apart)),
        mean_apart=common.rounded(abs(sum(two) - sum(one)) / sum(one)),
        within=max(apart) <= WITHIN,
        runs=runs,
        verify={
            "agrees": done.returncode == 0,
            "base": told["base"],
            "with_adapter": told["with_adapter"],
            "change": told["change"],
        },
    )


if __name__ == "__main__":
    main()
