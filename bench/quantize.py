"""Quantizing: speed against the `gguf` package and llama.cpp's kernels; errors and perplexity against llama.cpp's.

    python bench/quantize.py

SmolLM2's file holds weights that were rounded once. Its columns are scaled by random factors that the norms and the
rows before them take back, so that the model computes the same and its weights lie on no grid. Rows of 576 weights
are no multiple of 256, so four of them are quantized as one: both sides get the same blocks. Each side's blocks are
dequantized into a float32 file, and anytune measures the perplexity of a text (Python's own documentation) and the
distance to the float32 model.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

import common
from offgrid import off_the_grid, texts

os.environ["NUMBA_NUM_THREADS"] = "1"
import numpy as np  # noqa: E402

import anytune  # noqa: E402
from anytune.gguf import GGUF, dequantize, write_gguf  # noqa: E402
from anytune.gguf.encode import encode  # noqa: E402
from anytune.likelihood import perplexity  # noqa: E402
from anytune.quantization.collect import collect  # noqa: E402
from tests.support import ggml  # noqa: E402

NEAREST = ("F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "TQ1_0", "TQ2_0", "MXFP4")
SEARCHED = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS")
JUDGED = SEARCHED[:-1]  # IQ4_XS is IQ4_NL with scales in a super-block
WITH_IMPORTANCE = (*JUDGED, "Q4_0", "Q5_0")
ROWS = 4  # quantized as one

options = common.parser(__doc__, rounds=5)
options.add_argument("--windows", type=int, default=4, help="windows of 512 tokens that perplexity is measured on")
args = options.parse_args()
before = common.machine()


def speeds() -> list[dict[str, Any]]:
    """Millions of weights a second, one thread each; medians of rounds that take turns."""
    import gguf

    x = (0.02 * np.random.default_rng(0).standard_normal((2048, 2048))).astype(np.float32)
    found = []
    for name in (*NEAREST, *SEARCHED):
        sides = {"anytune": lambda: encode(x, name), "llama.cpp": lambda: ggml.quantize(x, name)}
        if name in NEAREST:
            sides["gguf"] = lambda: gguf.quants.quantize(x, gguf.GGMLQuantizationType[name])
        times: dict[str, list[float]] = {side: [] for side in sides}
        for quantize in (encode, ggml.quantize):  # compiled and loaded before the clock runs
            quantize(x[:1], name)
        for _ in range(args.rounds):
            for side, run in sides.items():
                start = time.perf_counter()
                run()
                times[side].append(time.perf_counter() - start)
        row = {side: common.rounded(x.size / common.median(seconds) / 1e6) for side, seconds in times.items()}
        found.append({"type": name, **row})
        print(found[-1], flush=True)
    return found


def as_blocks(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x).reshape(len(x) // ROWS, -1)


def write(path: Path, tensors: dict[str, np.ndarray]) -> Path:
    with GGUF.open(source) as file:
        write_gguf(
            path,
            file.metadata | {"general.file_type": 0},
            [(name, x.shape, "F32", x) for name, x in tensors.items()],
            kinds=file.kinds,
        )
    return path


def load(path: Path):
    return anytune.load(path, device="numpy", threads=args.threads)


def quality(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    tensors = off_the_grid(source)
    exact = load(write(folder / "f32.gguf", tensors))
    measured, text = texts()
    base = perplexity(exact, text, chunks=args.windows, save=folder / "base.bin")
    importance_of = collect(exact, measured, chunks=16)
    linears = [name for name, x in tensors.items() if name.startswith("blk.") and x.ndim == 2]
    found = []
    for name, weighted in [(name, False) for name in JUDGED] + [(name, True) for name in WITH_IMPORTANCE]:
        row: dict[str, Any] = {"type": name, "importance": weighted}
        for side, how in (("anytune", encode), ("llama.cpp", ggml.quantize)):
            error = total = 0.0
            made = dict(tensors)
            for linear in linears:
                x, columns = as_blocks(tensors[linear]), None
                if weighted:
                    importance = importance_of.means(linear).astype(np.float32)
                    columns = np.tile(np.maximum(importance / importance.mean(), 1e-5), ROWS)
                y = dequantize(how(x, name, columns), name)
                w = 1.0 if columns is None else columns
                error, total = error + float((w * (y - x) ** 2).sum()), total + float((w * x**2).sum())
                made[linear] = y.reshape(tensors[linear].shape)
            facts = perplexity(load(write(folder / "made.gguf", made)), base=folder / "base.bin")
            row[side] = {
                "error": common.rounded(error / total, 5),
                "kl": common.rounded(facts["kl_mean"], 4),
                "kl_uncertainty": common.rounded(facts["kl_uncertainty"], 2),
                "perplexity": round(facts["perplexity"], 4),
                "same_top": round(facts["same_top"], 4),
            }
        found.append(row)
        print(row, flush=True)
    return {key: base[key] for key in ("perplexity", "uncertainty", "tokens")}, found


source = common.model_file(args.model)
speed = speeds()
with tempfile.TemporaryDirectory(prefix="anytune-bench-") as name:
    exact, results = quality(Path(name))
common.save("quantize", args, before, model=Path(source).stem, speed=speed, exact=exact, quality=results)
