"""Training speed and memory on one GPU: anytune on a quantized base against transformers + peft, in one run.

    python bench/train_gpu.py                     # everything: about eight minutes on an H100
    python bench/train_gpu.py --only '8x1024;1x128' --no-peers

Qwen3-1.7B's shape with its whole vocabulary of 151,936, random weights written as GGUF, LoRA r=16 on all linears, the
second half of each example with loss, whole optimizer steps. The peer has the same shape in bf16 (see
peers/peft_gpu.py), plain and compiled. Each contestant runs in a process of its own, alone on its card; with two cards
the peers have the second one. `gemm_tflops` is what one large bf16 product reaches on this card in the same run, in a
burst and when it goes on until the card's power limit acts: what a step's arithmetic is compared with.
"""

from __future__ import annotations

import argparse
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import common
import qwen3
import torch

SETTINGS = {  # name: (blocks, examples x tokens, --memory, profile)
    "8x1024": ("Q8_0", "8x1024", None, True),
    "1x128": ("Q8_0", "1x128", None, True),
    "8x1024, 6 GiB": ("Q8_0", "8x1024", "6GiB", False),
    "1x32768, 24 GiB": ("Q8_0", "1x32768", "24GiB", False),
    "8x1024, Q4_0": ("Q4_0", "8x1024", None, False),
    "8x1024, Q4_K": ("Q4_K", "8x1024", None, False),
    "8x1024, Q4_K, 4 GiB": ("Q4_K", "8x1024", "4GiB", False),
}
LIMIT = 90      # seconds for one contestant
PEERS = (("8x1024", ()), ("8x1024", ("--compile",)), ("1x128", ()), ("1x128", ("--compile",)))
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


def run_peers(env: dict, gpus: int, compiled: bool) -> list[dict]:
    """All peers one after the other, on the second card if there is one."""
    rows = []
    for shape, flags in (peer for peer in PEERS if compiled or not peer[1]):
        try:
            rows.append(common.run_once(["bench/peers/peft_gpu.py", "--shape", shape, *flags],
                                        env | {"CUDA_VISIBLE_DEVICES": str(min(1, gpus - 1))}, 2 * LIMIT))
        except SystemExit as error:
            rows.append({"shape": shape, "compile": bool(flags), "failed": str(error)})
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    options.add_argument("--only", default=";".join(SETTINGS), help="names of settings, with semicolons")
    options.add_argument("--no-peers", action="store_true")
    options.add_argument("--plain-peers", action="store_true", help="without the compiled ones, which take minutes")
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--folder", help="where the model files go; default: a temporary one")
    options.add_argument("--no-save", action="store_true", help="print only; leave bench/results alone")
    args = options.parse_args()
    before, env = common.machine(), common.environment(8)
    wanted = args.only.split(";")
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="anytune-bench-") as folder:
        script = Path(folder) / "gemm.py"
        script.write_text(GEMM.replace("GPUS", str(torch.cuda.device_count())))
        card = common.run_once([str(script)], env | {"CUDA_VISIBLE_DEVICES": "0"})
        waiting = (ThreadPoolExecutor(1).submit(run_peers, env, card["gpus"], not args.plain_peers)
                   if not args.no_peers else None)
        if waiting is not None and card["gpus"] < 2:
            waiting.result()    # one card: one contestant at a time
        results, files = {}, {}
        for name in wanted:
            blocks, shape, memory, profile = SETTINGS[name]
            if blocks not in files:
                for old in files.values():
                    old.unlink()
                files = {blocks: Path(folder) / f"qwen3-1.7b-{blocks.lower()}.gguf"}
                qwen3.write_model(files[blocks], "qwen3-1.7b", blocks)
            command = ["bench/gpu_steps.py", str(files[blocks]), "--shape", shape, "--rounds", str(args.rounds)]
            command += ["--memory", memory] if memory else []
            try:
                row = common.run_once(command + (["--profile"] if profile else []),
                                      env | {"CUDA_VISIBLE_DEVICES": "0"}, LIMIT)
            except SystemExit as error:
                results[name] = {"blocks": blocks, "failed": str(error)}
                print(name, error, flush=True)
                continue
            row["gflop_per_token"] = round(qwen3.gflop_per_token("qwen3-1.7b", int(shape.split("x")[1])), 3)
            for key, peak in (("fraction_of_gemm", "gemm_tflops"),
                              ("fraction_of_lasting_gemm", "gemm_tflops_for_two_seconds")):
                row[key] = round(row["tokens_per_s"] * row["gflop_per_token"] / 1e3 / card[peak], 3)
            results[name] = {"blocks": blocks, **row}
            print(name, row["tokens_per_s"], "tok/s", row["peak_gib"], "GiB", flush=True)
        peers = waiting.result() if waiting else []
    for row in peers:
        mine = results.get(row["shape"], {})
        if "tokens_per_s" in row and "tokens_per_s" in mine:
            row["ratio"] = round(mine["tokens_per_s"] / row["tokens_per_s"], 2)
    common.save("train_gpu", args, before, gpu=card, model="Qwen3-1.7B shape, vocabulary 151,936, random weights",
                rank=16, anytune=results, peers=peers)


if __name__ == "__main__":
    main()
