"""Decoding on one GPU, right from the GGUF blocks: tokens/s at batch 1 and 32, and the part of the bandwidth limit.

    python bench/decode_gpu.py                  # Qwen3-1.7B's shape, Q8_0, Q4_0 and Q4_K, about a minute on an H100

A token is a whole decoder step: embedding, 28 layers with their caches, the head over 151,936 tokens, and the likeliest
token's id and logit copied to the host (or those of the 40 likeliest, from which the host samples). The limit is what
reading every weight once takes at the card's measured copy bandwidth.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import common
import qwen3

MODEL = "Qwen3-1.7B shape, vocabulary 151,936, random weights"


def measure(
    path: str, batch: int, rank: int, most: int = 1, prefix: int = 128, tokens: int = 64, rounds: int = 5
) -> dict:
    """Run in a process of its own."""
    import numpy as np
    import torch

    import anytune

    model = anytune.load(path, device="cuda")
    adapter = None
    if rank:
        trainee = model.trainee(anytune.Lora(rank=rank), ubatch=64)
        adapter = trainee.adapter()
        del trainee
        model.hold("blocks")
        model.engine.release()
    decoder = model.decoder(adapter=adapter, batch=batch, context=1024)
    ids = np.random.default_rng(0).integers(0, model.config.vocabulary, (batch, prefix + rounds * tokens + 8)).tolist()
    decoder.feed([row[:prefix] for row in ids])
    for at in range(prefix, prefix + 4):
        decoder.feed_best([[row[at]] for row in ids], most)
    times = []
    for number in range(rounds):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for at in range(prefix + 4 + number * tokens, prefix + 4 + (number + 1) * tokens):
            decoder.feed_best([[row[at]] for row in ids], most)
        times.append((time.perf_counter() - begin) / tokens)
    middle = statistics.median(times)
    read = sum(m.nbytes for m in model.weights.matrices.values())
    return {
        "batch": batch,
        "rank": rank,
        "tokens_per_s": round(batch / middle, 1),
        "ms_per_token": round(middle * 1e3, 4),
        "rounds_ms": [round(t * 1e3, 4) for t in times],
        "weights_gb": round(read / 1e9, 3),
        "read_gb_per_s": round(read / middle / 1e9),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2),
    }


def main() -> None:
    options = common.saving(__doc__)
    options.add_argument("--types", default="Q8_0,Q4_0,Q4_K")
    options.add_argument("--folder", help="where the model files go; default: a temporary one")
    options.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    args = options.parse_args()
    if args.measure:
        path, *numbers = args.measure
        print(json.dumps(measure(path, *map(int, numbers))), flush=True)
        return
    from train_gpu import GEMM

    before, env, results = common.machine(), common.environment(8), {}
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="anytune-bench-") as folder:
        script, path = Path(folder) / "gemm.py", Path(folder) / "model.gguf"
        script.write_text(GEMM.replace("GPUS", "1"))
        card = common.run_once([str(script)], env)
        for kind in args.types.split(","):
            qwen3.write_model(path, "qwen3-1.7b", kind)
            for batch, rank, most in (
                ((1, 0, 1), (1, 0, 40), (1, 16, 1), (32, 0, 1), (32, 0, 40))
                if kind == "Q8_0"
                else ((1, 0, 1), (32, 0, 1))
            ):
                row = common.run_once(
                    ["bench/decode_gpu.py", "--measure", str(path), *map(str, (batch, rank, most))], env
                )
                row["fraction_of_bandwidth"] = round(row["read_gb_per_s"] / card["copy_gb_per_s"], 3)
                results[
                    f"{kind}, batch {batch}"
                    + (f", LoRA r={rank}" if rank else "")
                    + (", the 40 likeliest" if most > 1 else "")
                ] = row
                print(kind, row, file=sys.stderr, flush=True)
                common.save("decode_gpu", args, before, quiet=True, gpu=card, model=MODEL, anytune=results)


if __name__ == "__main__":
    main()
