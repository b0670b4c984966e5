"""Q4_0 beside NF4 with double quantization (QLoRA's type): errors of the weights and of a whole model.

    python bench/nf4.py

NF4 is written here in NumPy after its paper (Dettmers et al., 2023): blocks of 64 share the largest size, each weight
is the nearest of 16 quantiles of the normal distribution; double quantization keeps these sizes, less their mean, as 8
bits in blocks of 256. Eight bits are taken linear, which is no worse than the paper's FP8 for numbers of one size.
The model is SmolLM2 off the grid (bench/offgrid.py); its layers' matrices are rounded, everything else stays.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import numpy as np
from offgrid import off_the_grid, texts

import anytune
from anytune.gguf import BLOCKS, GGUF, dequantize, write_gguf
from anytune.gguf.encode import encode
from anytune.likelihood import perplexity

# Table of NF4 in the paper's appendix E
LEVELS = np.array(
    [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
     -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
     0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0], np.float32)  # fmt: skip
BLOCK, GROUP = 64, 256
NF4_BITS = 4 + 8 / BLOCK + 32 / (BLOCK * GROUP)


def nf4(x: np.ndarray, double: bool) -> np.ndarray:
    """float32 [n, k] -> what NF4 keeps of it."""
    blocks = np.pad(x.reshape(-1), (0, -x.size % BLOCK)).reshape(-1, BLOCK)
    peaks = np.abs(blocks).max(1)
    if double:
        padded = np.pad(peaks, (0, -len(peaks) % GROUP), mode="edge").reshape(-1, GROUP)
        mean = padded.mean()
        step = np.maximum(np.abs(padded - mean).max(1, keepdims=True) / 127, np.float32(1e-30))
        peaks = (np.rint((padded - mean) / step) * step + mean).reshape(-1)[: len(peaks)].astype(np.float32)
    scaled = blocks / np.where(peaks == 0, 1, peaks)[:, None]
    nearest = np.searchsorted((LEVELS[1:] + LEVELS[:-1]) / 2, scaled)
    return (LEVELS[nearest] * peaks[:, None]).reshape(-1)[: x.size].reshape(x.shape)


def blocks(kind: str) -> Callable[[np.ndarray], np.ndarray]:
    return lambda x: dequantize(encode(x, kind), kind)


def write(source: Path, path: Path, tensors: dict[str, np.ndarray]) -> Path:
    with GGUF.open(source) as file:
        rows = [(name, x.shape, "F32", x) for name, x in tensors.items()]
        write_gguf(path, file.metadata | {"general.file_type": 0}, rows, kinds=file.kinds)
    return path


def main() -> None:
    options = common.parser(__doc__)
    options.add_argument("--windows", type=int, default=2, help="windows of 512 tokens that the KL is measured on")
    args = options.parse_args()
    before, source = common.machine(), common.model_file(args.model)
    tensors = off_the_grid(source)
    linears = [name for name, x in tensors.items() if name.startswith("blk.") and x.ndim == 2]
    kinds: dict[str, tuple[float, Callable[[np.ndarray], np.ndarray]]] = {
        "Q4_0": (8 * BLOCKS["Q4_0"].type_size / BLOCKS["Q4_0"].block_size, blocks("Q4_0")),
        "NF4": (4 + 32 / BLOCK, lambda x: nf4(x, False)),
        "NF4, double quantization": (NF4_BITS, lambda x: nf4(x, True)),
        "IQ4_NL": (8 * BLOCKS["IQ4_NL"].type_size / BLOCKS["IQ4_NL"].block_size, blocks("IQ4_NL")),
    }
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="anytune-bench-") as name:
        folder = Path(name)

        def load(made: dict[str, np.ndarray]):
            return anytune.load(write(source, folder / "m.gguf", made), device="numpy", threads=args.threads)

        base = perplexity(load(tensors), texts()[1], chunks=args.windows, save=folder / "base.bin")
        for kind, (bits, rounded) in kinds.items():
            made = {**tensors, **{linear: rounded(tensors[linear]) for linear in linears}}
            error = sum(float(((made[n] - tensors[n]) ** 2).sum()) for n in linears)
            total = sum(float((tensors[n] ** 2).sum()) for n in linears)
            facts = perplexity(load(made), base=folder / "base.bin")
            rows.append({
                "type": kind, "bits_per_weight": common.rounded(bits, 4), "error": common.rounded(error / total, 4),
                "kl": common.rounded(facts["kl_mean"], 4), "kl_uncertainty": common.rounded(facts["kl_uncertainty"], 2),
                "perplexity": round(facts["perplexity"], 3)})  # fmt: skip
            print(rows[-1], flush=True)
    common.save("nf4", args, before, model="SmolLM2-135M off the grid", tokens=base["tokens"],
                perplexity=round(base["perplexity"], 3), types=rows)  # fmt: skip


if __name__ == "__main__":
    main()
