"""Training and decoding speed and memory of one GPU through WebGPU.

    python bench/train_webgpu.py                       # everything: some six minutes on an H100 through Vulkan
    python bench/train_webgpu.py --only 1x128          # some settings
    python bench/train_webgpu.py --shape tiny --only 1x128 --no-save    # a try on a software device

Qwen3-1.7B's shape with a vocabulary of 49,152, random weights written as GGUF, LoRA r=8 on all seven linears, the
second half of each example with loss, whole optimizer steps. The anchors are another system's Vulkan build on an H100
with the same model and its published flags (1x128, r=8): tokens/s.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import common
import qwen3

VOCABULARY = 49_152
ANCHORS = {"Q8_0": 128, "Q4_0": 143}
SETTINGS = {  # name: (blocks, flags of webgpu_steps.py)
    "1x128": ("Q8_0", ["--shape", "1x128", "--profile"]),
    "2x1024": ("Q8_0", ["--shape", "2x1024", "--profile"]),
    "1x128, 1.3 x weights": ("Q8_0", ["--shape", "1x128", "--memory", "1.3x"]),
    "1x128, 128 MiB": ("Q8_0", ["--shape", "1x128", "--max-binding", "128MiB"]),
    "2x1024, 128 MiB": ("Q8_0", ["--shape", "2x1024", "--max-binding", "128MiB"]),
    "1x128, 16 MiB": ("Q8_0", ["--shape", "1x128", "--max-binding", "16MiB"]),
    "2x1024, 16 MiB": ("Q8_0", ["--shape", "2x1024", "--max-binding", "16MiB"]),
    "1x2048": ("Q8_0", ["--shape", "1x2048"]),
    "decode": ("Q8_0", ["--decode", "--profile"]),
    "1x128, Q4_0": ("Q4_0", ["--shape", "1x128"]),
    "2x1024, Q4_0": ("Q4_0", ["--shape", "2x1024"]),
    "decode, Q4_0": ("Q4_0", ["--decode"]),
    "1x128, Q4_K": ("Q4_K", ["--shape", "1x128"]),
    "decode, Q4_K": ("Q4_K", ["--decode"]),
}


def main() -> None:
    options = common.saving(__doc__)
    options.add_argument("--only", help="names of settings, with semicolons")
    options.add_argument("--shape", default="qwen3-1.7b", choices=qwen3.SHAPES)
    options.add_argument("--device", default="webgpu")
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--folder", help="where the model files go; default: a temporary one")
    options.add_argument("--cache", help="folder of an earlier run's autotuning; default: a new one")
    args = options.parse_args()
    before, env, results, files = common.machine(), common.environment(8), {}, {}
    wanted = [name.strip() for name in args.only.split(";")] if args.only else list(SETTINGS)
    # autotuning of this run, on this device
    env["ANYTUNE_CACHE"] = args.cache or tempfile.mkdtemp(prefix="anytune-bench-")
    peak = common.run_once(["bench/webgpu_peak.py", "--device", args.device], env)
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="anytune-bench-") as folder:
        for name in wanted:
            blocks, flags = SETTINGS[name]
            if blocks not in files:
                for old in files.values():
                    old.unlink()
                files = {blocks: Path(folder) / f"{args.shape}-{blocks.lower()}.gguf"}
                qwen3.write_model(files[blocks], args.shape, blocks, VOCABULARY)
            row = common.run_once(
                [
                    "bench/webgpu_steps.py",
                    str(files[blocks]),
                    "--device",
                    args.device,
                    "--rounds",
                    str(args.rounds),
                    *flags,
                ],
                env,
            )
            if "--decode" not in flags:
                length = int(row["shape"].split("x")[1])
                row["gflop_per_token"] = round(qwen3.gflop_per_token(args.shape, length, 0.5, 8, VOCABULARY), 3)
                row["tflops"] = round(row["tokens_per_s"] * row["gflop_per_token"] / 1e3, 2)
                row["fraction_of_fma"] = round(row["tflops"] / peak["fma_tflops"], 3)
                if row["shape"] == "1x128" and blocks in ANCHORS and args.shape == "qwen3-1.7b":
                    row["over_anchor"] = round(row["tokens_per_s"] / ANCHORS[blocks], 2)
            else:  # a token reads every weight once, and a copy each byte twice
                row["fraction_of_bandwidth"] = round(row["read_gb_per_s"] / peak["copy_gb_per_s"], 3)
            results[name] = {"blocks": blocks, **row}
            print(name, row["tokens_per_s"], "tok/s", row["peak_gib"], "GiB", flush=True)
    common.save(
        "train_webgpu",
        args,
        before,
        anchors_tokens_per_s=ANCHORS,
        rank=8,
        peak=peak,
        anytune=results,
        model=f"{args.shape} shape, vocabulary {VOCABULARY:,}, random weights",
    )


if __name__ == "__main__":
    main()
