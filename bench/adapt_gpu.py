"""Distilling an adapter from activations on one GPU: 32k tokens through a 1.7B shape, in seconds.

    python bench/adapt_gpu.py                   # Qwen3-1.7B's shape, Q8_0, 32,768 tokens: about a minute on an H200

The teacher is the model with a random adapter of rank 16 on every linear, the student the model alone; weights and
tokens are noise, sizes and types are what counts. Gram matrices and factors stay on the card, in float64. Printed
besides the time: KL to the teacher on tokens that nothing was fitted to, before and after.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import common
import qwen3


def examples(vocabulary: int, count: int, length: int, seed: int) -> list:
    import numpy as np

    from anytune.adapt.data import Example

    ids = np.random.default_rng(seed).integers(0, vocabulary, (count, length)).astype(np.int32)
    return [Example(row, row, length, np.arange(length) % 16 == 15) for row in ids]


def random_adapter(model, rank: int, size: float):
    import numpy as np

    from anytune.adapter.adapter import Adapter

    rng, tensors = np.random.default_rng(1), {}
    for name, info in model.gguf.tensors.items():
        if name.startswith("blk.") and len(info.shape) == 2:
            out, columns = info.shape
            tensors[name] = (
                rng.standard_normal((rank, columns), np.float32) / np.float32(columns**0.5),
                rng.standard_normal((out, rank), np.float32) * np.float32(size / rank**0.5),
            )
    return Adapter(tensors, rank, float(rank), False, model.config.architecture)


def measure(path: str, device: str, dtype: str, tokens: int, length: int, batch: int, size: float) -> dict:
    """Run in a process of its own."""
    import anytune
    from anytune.adapt.fit import Recipe
    from anytune.adapt.job import Settings, Task, Teacher, as_adapter, memory_peak, run_fit
    from anytune.adapt.measure import beside

    loading = time.perf_counter()
    model = anytune.load(path, device=device, dtype=dtype)
    adapter = random_adapter(model, 16, size)
    vocabulary = model.config.vocabulary
    task = Task(
        Teacher(model, adapter), examples(vocabulary, tokens // length, length, 0), examples(vocabulary, 4, length, 1)
    )
    warm = examples(vocabulary, 2, length, 2)
    settings, recipe = Settings(batch=batch, drift_text=""), Recipe(16, 1e-3)
    run_fit(model, [Task(task.teacher, warm, warm)], recipe, settings, {})  # compiles, brings weights to the card
    ready = time.perf_counter() - loading
    fitted = run_fit(model, [task], recipe, settings, {})
    found = beside(
        model,
        task.teacher,
        {"before": None, "after": as_adapter(model, fitted.pairs, template="")},
        task.held,
        settings,
        "held-out tokens",
    )
    return {
        "tokens": tokens,
        "seconds": round(fitted.seconds, 2),
        "tokens_per_s": round(tokens / fitted.seconds),
        "cpu_seconds": round(fitted.cpu, 2),
        "seconds_to_ready": round(ready, 1),
        "dtype": dtype,
        "peak_gib": round(memory_peak(model) / 2**30, 2),
        "kl_before": float(found["before"].kl),
        "kl_after": float(found["after"].kl),
        "same_top": float(found["after"].top),
    }


def main() -> None:
    options = common.saving(__doc__)
    options.add_argument("--shape", default="qwen3-1.7b", choices=sorted(qwen3.SHAPES))
    options.add_argument("--device", default="cuda")
    options.add_argument("--tokens", type=int, default=32_768)
    options.add_argument("--length", type=int, default=1024)
    options.add_argument("--batch", type=int, default=8192)
    options.add_argument("--size", type=float, default=0.5, help="of the teacher's changes, beside the weights'")
    options.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    args = options.parse_args()
    how = (args.tokens, args.length, args.batch, args.size)
    if args.measure:
        print(json.dumps(measure(*args.measure, *how)), flush=True)
        return
    before, env, results = common.machine(), common.environment(8), {}
    with tempfile.TemporaryDirectory(prefix="anytune-bench-") as folder:
        path = Path(folder) / "model.gguf"
        qwen3.write_model(path, args.shape, "Q8_0", 151_936 if args.shape == "qwen3-1.7b" else 1024)
        for dtype in ("bf16", "f32"):
            command = [
                "bench/adapt_gpu.py",
                "--tokens",
                str(args.tokens),
                "--length",
                str(args.length),
                "--batch",
                str(args.batch),
                "--size",
                str(args.size),
                "--measure",
                str(path),
                args.device,
                dtype,
            ]
            results[dtype] = common.run_once(command, env)
    common.save(
        "adapt_gpu",
        args,
        before,
        shape=args.shape,
        type="Q8_0",
        rank=16,
        length=args.length,
        batch=args.batch,
        results=results,
    )


if __name__ == "__main__":
    main()
