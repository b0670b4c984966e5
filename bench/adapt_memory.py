"""TinyLlama's shape distilled from activations within a budget of memory: minutes, and the process's peak.

    python bench/adapt_memory.py

A file of TinyLlama-1.1B's shape with random Q4_0 weights (tinyllama.py) and a random adapter as the teacher: what is
measured is time and memory, not what comes of it. Then the same with a budget that is too small.
"""

from __future__ import annotations

import json
import resource
import subprocess
import tempfile
import time
from pathlib import Path

import common
import numpy as np
import tinyllama

options = common.parser(__doc__)
options.add_argument("--memory", default="600MiB")
options.add_argument("--examples", type=int, default=6)
options.add_argument("--words", type=int, default=40)
options.add_argument("--layers", type=int, default=tinyllama.LAYERS)
args = options.parse_args()
before = common.machine()


def random_adapter(path: Path, rank: int = 8) -> None:
    from anytune.adapter.adapter import Adapter

    rng, tensors = np.random.default_rng(0), {}
    for layer in range(args.layers):
        for name, (out, columns) in tinyllama.LAYER.items():
            tensors[f"blk.{layer}.{name}.weight"] = (
                rng.standard_normal((rank, columns)).astype(np.float32) / np.float32(columns) ** 0.5,
                rng.standard_normal((out, rank)).astype(np.float32) * np.float32(0.3 / rank**0.5),
            )
    Adapter(tensors, rank, float(rank)).save(path)


def distil(folder: Path, memory: str) -> tuple[dict, str]:
    """(the facts that it printed and its time, the last line that it said of an error)."""
    began = time.perf_counter()
    words = ["adapt", "distill", "-m", folder / "model.gguf", "--teacher-lora", folder / "teacher.gguf"]
    words += ["-f", folder / "text.jsonl", "--drift-text", folder / "ordinary.txt", "--rank", 8, "-b", 128]
    words += ["--memory", memory, "-t", args.threads, "--device", "numpy", "--no-verify", "--json"]
    done = subprocess.run(
        common.anytune(*words, "-o", folder / "made.gguf"),
        capture_output=True,
        text=True,
        env=common.environment(args.threads),
        cwd=common.ROOT,
    )
    facts = json.loads(done.stdout) if done.stdout.startswith("{") else {}
    lines = done.stderr.strip().splitlines() or [""]
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    return {
        **facts,
        "exit_code": done.returncode,
        "seconds": time.perf_counter() - began,
        "peak_rss_mib": round(peak / common.MIB, 1),
    }, lines[-1]


with tempfile.TemporaryDirectory(prefix="anytune-bench-") as name:
    folder = Path(name)
    tinyllama.LAYERS = args.layers
    tinyllama.write_model(folder / "model.gguf")
    tinyllama.write_text(folder / "text.jsonl", args.examples, args.words)
    tinyllama.write_text(folder / "ordinary.txt", 1, args.words)
    random_adapter(folder / "teacher.gguf")
    _, refusal = distil(folder, "200MiB")
    facts, said = distil(folder, args.memory)
    if facts["exit_code"]:
        raise SystemExit(said)
    keep = ("tokens", "examples", "rank", "took", "seconds", "peak_rss_mib")
    kl = {"before": facts["before"]["kl"], "after": facts["after"]["kl"]}
    found = {key: facts[key] for key in keep}
    common.save("adapt_memory", args, before, memory=args.memory, layers=args.layers, too_small=refusal, kl=kl, **found)
