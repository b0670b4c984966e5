"""Training speed and memory on one GPU: anytune on a quantized base against transformers + peft, in one run.

    python bench/train_gpu.py                     # everything: about seven minutes on two H200, fourteen on one
    python bench/train_gpu.py --only '8x1024;1x128' --peers unsloth

Qwen3-1.7B's shape with its whole vocabulary of 151,936, random weights written as GGUF, LoRA r=16 on all linears, the
second half of each example with loss, whole optimizer steps. The peers have the same shape in bf16: transformers + peft
(peers/peft_gpu.py), plain, with Liger's kernels and compiled, and Unsloth (peers/unsloth_gpu.py). Each contestant runs
in a process of its own, alone on its card: ours on the first one, the peers on the others, and then there too.
`gemm_tflops` is what one large bf16 product reaches on this card in the same run, in a burst and when it goes on until
the card's power limit acts: what a step's arithmetic is compared with.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import common
import qwen3
import torch

TIGHTEST = "8x1024, Q4_0, 2.3 GiB"  # beside which a peer's 4 bits are shown
SETTINGS = {  # name: (blocks, examples x tokens, --memory, --dtype, profile)
    "8x1024": ("Q8_0", "8x1024", None, "auto", True),
    "16x1024": ("Q8_0", "16x1024", None, "auto", False),
    "8x1024, fp8": ("Q8_0", "8x1024", None, "fp8", True),
    "16x1024, fp8": ("Q8_0", "16x1024", None, "fp8", False),
    "1x8192": ("Q8_0", "1x8192", None, "auto", True),
    "1x8192, fp8": ("Q8_0", "1x8192", None, "fp8", False),
    "1x128": ("Q8_0", "1x128", None, "auto", True),
    "8x1024, 6 GiB": ("Q8_0", "8x1024", "6GiB", "auto", False),
    "1x32768, 24 GiB": ("Q8_0", "1x32768", "24GiB", "auto", False),
    TIGHTEST: ("Q4_0", "8x1024", "2300MiB", "auto", False),
    "8x1024, Q4_K": ("Q4_K", "8x1024", None, "auto", False),
    "8x1024, Q4_K, 4 GiB": ("Q4_K", "8x1024", "4GiB", "auto", False),
}
LIMIT = 90  # seconds for one contestant
PEERS = {  # name: [(script, arguments)]
    "unsloth": [
        ("unsloth_gpu.py", ("--shape", shape, *more))
        for shape, *more in (
            ("8x1024",),
            ("16x1024",),
            ("1x8192",),
            ("1x128",),
            ("8x1024", "--bits", "4", "--checkpointing", "unsloth"),
        )
    ],
    "compiled": [("peft_gpu.py", ("--shape", "8x1024", "--compile"))],
    "liger": [("peft_gpu.py", ("--shape", "8x1024", "--liger"))],
    "peft": [("peft_gpu.py", ("--shape", "8x1024")), ("peft_gpu.py", ("--shape", "1x128"))],
}
GEMM = """
import json, torch
a, b = (torch.randn(8192, 8192, device="cuda").bfloat16() for _ in range(2))
def tflops(count):
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    first.record()
    for _ in range(count): a @ b
    last.record(); torch.cuda.synchronize()
    return round(count * 2 * 8192**3 / first.elapsed_time(last) / 1e9, 1)
tflops(5)
burst, sustained = tflops(20), tflops(1500)
x = torch.empty(1 << 30, dtype=torch.uint8, device="cuda"); y = torch.empty_like(x)
y.copy_(x)
one, two = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
one.record()
for _ in range(10): y.copy_(x)
two.record(); torch.cuda.synchronize()
print(json.dumps({"gemm_tflops": burst, "gemm_tflops_for_two_seconds": sustained,
                  "copy_gb_per_s": round(10 * 2 * 2**30 / one.elapsed_time(two) / 1e6),
                  "gpu": torch.cuda.get_device_name(0), "gpus": GPUS, "driver_cuda": torch.version.cuda}))
"""


class Peers:
    """The peers that have not run yet: whichever card is free takes the next one."""

    def __init__(self, names: list[str], env: dict, folder: Path, end: float):
        self.waiting = [peer for name in names for peer in PEERS[name]]
        self.env, self.folder, self.end, self.rows = env, folder / "hf", end, []
        self.lock = threading.Lock()

    def run(self, card: int, keep: Callable[[], None]) -> None:
        env = self.env | {"CUDA_VISIBLE_DEVICES": str(card)}
        while self.waiting:
            script, flags = self.waiting.pop(0)
            unsloth, left = script == "unsloth_gpu.py", self.end - time.monotonic()
            try:
                if left < 10:
                    raise SystemExit("not begun: the time of this run was over")
                if unsloth:
                    self.make_folder(env)
                more = [str(self.folder)] * unsloth
                row = common.run_once([f"bench/peers/{script}", *more, *flags], env, min(3 * LIMIT, left))
            except SystemExit as error:
                name = ("Unsloth" if unsloth else "transformers + peft") + "".join(f", {flag}" for flag in flags[2:])
                row = {"peer": name, "shape": flags[1], "failed": str(error)[-500:]}
            row["card"] = card
            self.rows.append(row)
            print({key: row.get(key) for key in ("peer", "shape", "tokens_per_s", "peak_gib", "failed")}, flush=True)
            keep()

    def make_folder(self, env: dict) -> None:
        with self.lock:
            if not self.folder.exists():
                common.run(["bench/peers/hf_folder.py", str(self.folder)], env, 2 * LIMIT)


def run_ours(name: str, path: Path, env: dict, rounds: int, card: dict) -> dict:
    blocks, shape, memory, dtype, profile = SETTINGS[name]
    command = ["bench/gpu_steps.py", str(path), "--shape", shape, "--rounds", str(rounds), "--dtype", dtype]
    command += (["--memory", memory] if memory else []) + (["--profile"] if profile else [])
    try:
        row = common.run_once(command, env | {"CUDA_VISIBLE_DEVICES": "0"}, LIMIT)
    except SystemExit as error:
        print(name, error, flush=True)
        return {"blocks": blocks, "failed": str(error)[-500:]}
    row["gflop_per_token"] = round(qwen3.gflop_per_token("qwen3-1.7b", int(shape.split("x")[1])), 3)
    for key, peak in (("fraction_of_gemm", "gemm_tflops"), ("fraction_of_lasting_gemm", "gemm_tflops_for_two_seconds")):
        row[key] = round(row["tokens_per_s"] * row["gflop_per_token"] / 1e3 / card[peak], 3)
    print(name, row["tokens_per_s"], "tok/s", row["peak_gib"], "GiB", flush=True)
    return {"blocks": blocks, "dtype": dtype, **row}


def main() -> None:
    options = common.saving(__doc__)
    options.add_argument("--only", default=";".join(SETTINGS), help="names of settings, with semicolons")
    options.add_argument("--peers", default=",".join(PEERS), help="some of these, with commas; nothing: none")
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--seconds", type=float, default=1e6, help="no peer goes on after that")
    options.add_argument("--folder", help="where the model files go; default: a temporary one")
    args = options.parse_args()
    before, env, results, end = common.machine(), common.environment(8), {}, time.monotonic() + args.seconds
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="anytune-bench-") as place:
        folder = Path(place)
        script = folder / "gemm.py"
        script.write_text(GEMM.replace("GPUS", str(torch.cuda.device_count())))
        card = common.run_once([str(script)], env | {"CUDA_VISIBLE_DEVICES": "0"})
        peers = Peers([name for name in args.peers.split(",") if name], env, folder, end)
        lock = threading.Lock()

        def keep(quiet: bool = True) -> None:
            """After each contestant, so that a run which is ended early has given something."""
            with lock:
                for row in peers.rows:
                    row["beside"] = TIGHTEST if row.get("bits") == 4 else row["shape"]
                    mine = results.get(row["beside"], {})
                    if "tokens_per_s" in row and "tokens_per_s" in mine:
                        row["ratio"] = round(mine["tokens_per_s"] / row["tokens_per_s"], 2)
                facts = {"model": "Qwen3-1.7B shape, vocabulary 151,936, random weights", "rank": 16}
                common.save(
                    "train_gpu", args, before, quiet=quiet, gpu=card, **facts, anytune=results, peers=peers.rows
                )

        with ThreadPoolExecutor() as pool:
            others = [pool.submit(peers.run, number, keep) for number in range(1, card["gpus"])]
            files: dict[str, Path] = {}
            for name in filter(None, args.only.split(";")):
                blocks = SETTINGS[name][0]
                if blocks not in files:
                    for old in files.values():
                        old.unlink()
                    files = {blocks: folder / f"qwen3-1.7b-{blocks.lower()}.gguf"}
                    qwen3.write_model(files[blocks], "qwen3-1.7b", blocks)
                results[name] = run_ours(name, files[blocks], env, args.rounds, card)
                keep()
            peers.run(0, keep)
            for other in others:
                other.result()
        keep(quiet=False)


if __name__ == "__main__":
    main()
