"""Training a model of Qwen 3.5's kind (gated delta nets) on one GPU against transformers + peft with
flash-linear-attention, in one run.

    pip install flash-linear-attention && python bench/delta_gpu.py          # about four minutes on one H200

Qwen3.5-2B's shape with its vocabulary of 248,320 (bench/qwen35.py), random weights, ours in Q8_0 blocks, the peer's in
bf16; LoRA r=16 on the layers' large linears, the second half of each example with loss, whole optimizer steps. Each
contestant runs in a process of its own, alone on the card.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import common
import qwen35

SHAPES = {"8x1024": (), "1x32768": ("--checkpointing",)}  # and what the peer needs to fit
LIMIT = 200  # seconds for one contestant; the peer first tries out many variants of its kernels


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    options.add_argument("--only", default=",".join(SHAPES), help="some of these shapes, with commas")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--folder", help="where the model file goes; default: a temporary one")
    options.add_argument("--no-peer", action="store_true")
    options.add_argument("--no-save", action="store_true", help="print only; leave bench/results alone")
    args = options.parse_args()
    before, ours, peers = common.machine(), {}, {}
    env = common.environment(8, TRITON_CACHE_AUTOTUNING="1")  # what the peer tried out is kept for its next shape
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="anytune-bench-") as folder:
        path = Path(folder) / "model.gguf"
        qwen35.write_model(path, "qwen3.5-2b")
        for shape in args.only.split(","):
            peer = ["bench/peers/delta_gpu.py", "--shape", shape, *SHAPES[shape]]
            mine = ["bench/gpu_steps.py", str(path), "--shape", shape, "--rounds", str(args.rounds), "--profile"]
            for rows, command in ((ours, mine), *(() if args.no_peer else ((peers, peer),))):
                try:
                    rows[shape] = common.run_once(command, env, LIMIT)
                except SystemExit as error:
                    rows[shape] = {"failed": str(error)[-500:]}
                print(shape, {key: rows[shape].get(key) for key in ("tokens_per_s", "peak_gib", "failed")}, flush=True)
            if "tokens_per_s" in ours[shape] and "tokens_per_s" in peers.get(shape, {}):
                ours[shape]["ratio"] = round(ours[shape]["tokens_per_s"] / peers[shape]["tokens_per_s"], 2)
    model = "Qwen3.5-2B shape, vocabulary 248,320, random weights"
    common.save("delta_gpu", args, before, model=model, rank=16, anytune=ours, peers=peers)


if __name__ == "__main__":
    main()
