"""Training speed and memory on one GPU: anytune on a quantized base against transformers + peft, in one run.

    python bench/train_gpu.py                     # everything: about eight minutes on an H100
    python bench/train_gpu.py --only 8x1024,1x128 --no-peers

Qwen3-1.7B's shape with its whole vocabulary of 151,936, random weights written as GGUF, LoRA r=16 on all linears, the second
half of each example with loss, whole optimizer steps. The peer has the same shape in bf16 (see peers/peft_gpu.py), plain and
compiled. Each contestant runs alone in a process of its own. `gemm_tflops` is what one large bf16 product reaches on this
card in the same run, in a burst and when it goes on until the card's power limit acts: what a step's arithmetic is compared
with.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import common
import qwen3

SETTINGS = {  # name: (blocks, examples x tokens, --memory, profile)
    "8x1024": ("Q8_0", "8x1024", None, True),
    "8x1024, tight": ("Q8_0", "8x1024", "6GiB", False),
    "1x128": ("Q8_0", "1x128", None, True),
    "1x32768": ("Q8_0", "1x32768", "24GiB", False),
    "8x1024, Q4_0": ("Q4_0", "8x1024", None, False),
    "8x1024, Q4_K": ("Q4_K", "8x1024", None, False),
    "8x1024, Q4_0, tight": ("Q4_0", "8x1024", "6GiB", False),
    "8x1024, Q4_K, tight": ("Q4_K", "8x1024", "6GiB", False),
}
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
                  "gpu": torch.cuda.get_device_name(0), "driver_cuda": torch.version.cuda}))
"""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    options.add_argument("--only", default=",".join(SETTINGS).replace(", ", "; "), help="names of settings, with commas")
    options.add_argument("--no-peers", action="store_true")
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--folder", help="where the model files go; default: a temporary one")
    options.add_argument("--no-save", action="store_true", help="print only; leave bench/results alone")
    args = options.parse_args()
    before, env = common.machine(), common.environment(8)
    wanted = [name.replace("; ", ", ") for name in args.only.split(",")]
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="anytune-bench-") as folder:
        script = Path(folder) / "gemm.py"
        script.write_text(GEMM)
        card = common.run_once([str(script)], env)
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
            row = common.run_once(command + (["--profile"] if profile else []), env)
            row["gflop_per_token"] = round(qwen3.gflop_per_token("qwen3-1.7b", int(shape.split("x")[1])), 3)
            row["fraction_of_gemm"] = round(row["tokens_per_s"] * row["gflop_per_token"] / 1e3 / card["gemm_tflops"], 3)
            results[name] = {"blocks": blocks, **row}
            print(name, row["tokens_per_s"], "tok/s", row["peak_gib"], "GiB", flush=True)
        peers = []
        for shape, flags in () if args.no_peers else PEERS:
            peers.append(common.run_once(["bench/peers/peft_gpu.py", "--shape", shape, *flags], env))
            print(peers[-1], flush=True)
    for shape in ("8x1024", "1x128"):
        for row in peers:
            if row["shape"] == shape and shape in results:
                row["ratio"] = round(results[shape]["tokens_per_s"] / row["tokens_per_s"], 2)
    common.save("train_gpu", args, before, gpu=card, model="Qwen3-1.7B shape, vocabulary 151,936, random weights", rank=16,
                anytune=results, peers=peers)


if __name__ == "__main__":
    main()
