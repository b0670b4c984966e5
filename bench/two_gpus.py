"""Training with two GPUs against one: data parallel, with a sharded base, and with a base that one share does not hold.

    python bench/two_gpus.py                      # under four minutes on two H100
    python bench/two_gpus.py --device cpu-torch --model small --shape 1x64 --vocabulary 4096 --rounds 3

Qwen3-1.7B's shape with random weights in Q8_0, LoRA r=16 on all linears, the second half of each example with loss.
Each GPU has one micro-batch a step, so two have twice the tokens of one (weak scaling). Loss curves are of the same
global batches of two micro-batches, whoever computes them. For the last part --memory is set between what a process
needs at least with the base whole and with a slice of it: the first is refused, the second trains. A lone GPU can
still train within that by copying weights from the host's memory at each use, which is measured too.
Contestants run one after the other.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import common
import qwen3

LIMIT = 150  # seconds for one contestant
NEEDS = re.compile(r"at least (\d+) MiB")


def run(processes: int, command: list[str], script: str = "bench/process_group_steps.py") -> dict:
    """The script in so many processes -> what the first one printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = common.environment(max(1, (os.cpu_count() or 2) // 2 // processes))
    children = []
    try:
        for rank in range(processes):
            places = (
                {
                    "RANK": rank,
                    "LOCAL_RANK": rank,
                    "WORLD_SIZE": processes,
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": port,
                    "GLOO_SOCKET_IFNAME": "lo",
                }
                if processes > 1
                else {}
            )
            children.append(
                subprocess.Popen(
                    [sys.executable, script, *command],
                    env=env | {k: str(v) for k, v in places.items()},
                    cwd=common.ROOT,
                    text=True,
                    stdout=subprocess.DEVNULL if rank else subprocess.PIPE,
                )
            )
        said = children[0].communicate(timeout=LIMIT)[0]
        codes = [child.wait(timeout=30) for child in children]
    finally:
        for child in children:
            child.kill()
    lines = [line for line in said.splitlines() if line.startswith("{")]
    if any(codes) or not lines:
        raise SystemExit(f"{' '.join(command)} ended with exit codes {codes}: {said[-2000:]}")
    return json.loads(lines[-1])


def apart(one: list[float], two: list[float]) -> float:
    """The largest relative difference of two loss curves."""
    return common.rounded(max(abs(a - b) / a for a, b in zip(one, two, strict=True)), 2)


def tight(base: list[str]) -> dict:
    """A base that --memory does not let one process hold, and that two hold together."""
    least = {}
    for name, processes, flag in (("whole", 1, "--whole"), ("slice", 2, "--shard")):
        said = run(processes, [*base, flag, "--memory", "1MiB"])["refused"]
        least[name] = int(NEEDS.search(said)[1])
    if least["slice"] + 2 > least["whole"]:
        raise SystemExit(f"this model is too small: a slice needs {least['slice']} MiB, the whole {least['whole']}")
    memory = f"{(least['slice'] + least['whole']) // 2}MiB"
    limited = [*base, "--memory", memory]
    return {
        "memory": memory,
        "least_mib": least,
        "whole": run(1, [*limited, "--whole"]),
        "one": run(1, limited),
        "two_sharded": run(2, [*limited, "--shard"]),
    }


def peer(args, processes: int) -> dict:
    """transformers + peft with DDP, in as many processes."""
    try:
        row = run(
            processes,
            ["--shape", args.shape, "--model", args.model, "--vocabulary", str(args.vocabulary)],
            "bench/peers/peft_gpu.py",
        )
    except (SystemExit, subprocess.TimeoutExpired) as error:
        row = {"failed": str(error)[-500:]}
    print(row, flush=True)
    return {"processes": processes, **row}


def card(device: str) -> dict:
    import torch

    if device != "cuda":
        return {"name": device}
    if torch.cuda.device_count() < 2:
        raise SystemExit(f"this needs two GPUs, and torch sees {torch.cuda.device_count()}")
    return {
        "name": torch.cuda.get_device_name(0),
        "cuda": torch.version.cuda,
        "nccl": ".".join(map(str, torch.cuda.nccl.version())),
        "peer_access": torch.cuda.can_device_access_peer(0, 1),
    }


def main() -> None:
    options = common.saving(__doc__)
    options.add_argument("--device", default="cuda", choices=["cuda", "cpu-torch"])
    options.add_argument("--model", default="qwen3-1.7b", choices=list(qwen3.SHAPES), help="whose shape")
    options.add_argument("--vocabulary", type=int, default=151_936)
    options.add_argument("--shape", default="8x1024", help="of a micro-batch: examples x tokens of each")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument(
        "--folder",
        default="/dev/shm" if Path("/dev/shm").is_dir() else None,
        help="where the model file goes; default: into memory",
    )
    args = options.parse_args()
    before, gpu = common.machine(), card(args.device)
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="anytune-bench-") as folder:
        path = Path(folder) / "model.gguf"
        qwen3.write_model(path, args.model, "Q8_0", args.vocabulary)
        base = [str(path), "--device", args.device, "--shape", args.shape, "--rounds", str(args.rounds)]
        fp8 = [("two_fp8", 2, ["--dtype", "fp8"]), ("one_fp8", 1, ["--dtype", "fp8"])] if args.device == "cuda" else []
        found = {
            name: run(processes, [*base, *more])
            for name, processes, more in (("one", 1, []), ("two", 2, []), ("two_sharded", 2, ["--shard"]), *fp8)
        }
        for name, row in found.items():
            row["ratio"] = common.rounded(row["tokens_per_s"] / found["one"]["tokens_per_s"])
            row["curve_apart"] = apart(found["one"]["loss_curve"], row["loss_curve"])
            print(name, row["tokens_per_s"], "tok/s", row["peak_gib"], "GiB", row["curve_apart"], flush=True)
        small = tight(base)
    peers = [peer(args, processes) for processes in (1, 2)] if args.device == "cuda" else []
    for name in ("one", "two_sharded"):
        if "loss_curve" in small[name]:
            small[name]["curve_apart"] = apart(found["one"]["loss_curve"], small[name]["loss_curve"])
    common.save(
        "two_gpus",
        args,
        before,
        gpu=gpu,
        model=f"{args.model} shape, vocabulary {args.vocabulary:,}, Q8_0, random weights",
        rank=16,
        shape=args.shape,
        runs=found,
        tight=small,
        peers=peers,
    )


if __name__ == "__main__":
    main()
