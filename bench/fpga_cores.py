"""The dequantizer and the quantizer of the hardware cores, simulated, beside NumPy and Numba on one thread here.

    python bench/fpga_cores.py                 # a million blocks through each core

Every block that leaves a core is compared with what the `gguf` package makes of it. Cycles are the simulation's; what a
clock would make of them is left to the reader, but for the one at which a core would be as fast as a thread of Numba.
Rates of the processor are of CPU seconds of one thread, the best round of each.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["NUMBA_NUM_THREADS"] = "1"
import common  # noqa: E402
import gguf  # noqa: E402
import numpy as np  # noqa: E402

from anytune.fpga.streams import Core, dequantizer_beats, halved  # noqa: E402
from anytune.gguf import BLOCKS, dequantize  # noqa: E402
from anytune.gguf.encode import encode  # noqa: E402
from anytune.gguf.kernels import KERNELS  # noqa: E402

BLOCK, PORTION = 32, 100_000
THREAD = 1 << 24  # weights that the processor takes at a time: beyond its caches
CASES = (("dequantizer", "Q4_0"), ("dequantizer", "Q8_0"), ("quantizer", "Q4_0"), ("quantizer_q8_0", "Q8_0"))


def numbers(rng: np.random.Generator, blocks: int) -> np.ndarray:
    """float32 [blocks, 32] of bfloat16's values, of widely different sizes, some blocks and some numbers zero."""
    x = rng.standard_normal((blocks, BLOCK)) * np.exp(rng.uniform(-16, 8, (blocks, 1)))
    x[rng.random(blocks) < 0.01] = 0
    x[rng.random(x.shape) < 0.02] = 0
    return (halved(x).view("<u2").astype(np.uint32) << 16).view(np.float32)


def packed(rng: np.random.Generator, blocks: int, name: str) -> np.ndarray:
    """uint8 [blocks, bytes]: any code, any finite scale."""
    data = rng.integers(0, 256, (blocks, BLOCKS[name].type_size), dtype=np.uint8)
    bits = rng.integers(0, 1024, blocks) | rng.integers(0, 31, blocks) << 10 | rng.integers(0, 2, blocks) << 15
    data[:, :2] = bits.astype("<u2").view(np.uint8).reshape(-1, 2)
    return data


def simulated(core: Core, which: str, name: str, blocks: int) -> dict[str, Any]:
    rng, kind = np.random.default_rng(0), gguf.GGMLQuantizationType[name]
    done = cycles = differ = 0
    start = time.process_time()
    while done < blocks:
        n = min(PORTION, blocks - done)
        if which == "dequantizer":
            data = packed(rng, n, name)
            got, took = core.run(dequantizer_beats(data, name))
            want = halved(gguf.quants.dequantize(data, kind))
        else:
            x = numbers(rng, n)
            got, took = core.run(halved(x))
            with np.errstate(all="ignore"):
                want = gguf.quants.quantize(x, kind)
        differ += int((got[:, : want.shape[1]] != want).any(-1).sum())
        done, cycles = done + n, cycles + took
    return {
        "blocks": done,
        "blocks_that_differ": differ,
        "cycles": cycles,
        "cycles_a_block": round(cycles / done, 5),
        "cpu_seconds": round(time.process_time() - start, 1),
    }


def rate(work: Callable[[], Any], rounds: int) -> float:
    """Gweights/s of a CPU second."""
    work()  # compiles, fills the caches
    seconds = []
    for _ in range(rounds):
        start = time.thread_time()
        work()
        seconds.append(time.thread_time() - start)
    return common.rounded(THREAD / min(seconds) / 1e9)


def processor(which: str, name: str, rounds: int) -> dict[str, float]:
    rng, blocks = np.random.default_rng(1), THREAD // BLOCK
    if which != "dequantizer":
        x = numbers(rng, blocks)
        return {
            "numpy": rate(lambda: encode(x, name, compiled=False), rounds),
            "numba": rate(lambda: encode(x, name, compiled=True), rounds),
        }
    data, out = packed(rng, blocks, name), np.empty(THREAD, np.float32)
    kernel = KERNELS[name]
    return {
        "numpy": rate(lambda: dequantize(data, name), rounds),
        "numba": rate(lambda: kernel(data.reshape(-1), data.size, 0, out, THREAD, 0, 1, blocks), rounds),
    }


def main() -> None:
    options = common.parser(__doc__)
    options.add_argument("--blocks", type=int, default=1_000_000)
    args = options.parse_args()
    before, rows, cores = common.machine(), [], {}
    with tempfile.TemporaryDirectory(prefix="anytune-cores-") as folder:
        for which, name in CASES:
            core = cores.get(which) or Core(which, Path(folder) / which)
            cores[which] = core
            thread = processor(which, name, args.rounds)
            rows.append(
                {
                    "core": which,
                    "type": name,
                    "simulated": simulated(core, which, name, args.blocks),
                    "gweights_per_s_of_a_thread": thread,
                    "mhz_that_equals_numba": round(thread["numba"] * 1e3 / BLOCK, 1),
                }
            )
    common.save(
        "fpga_cores",
        args,
        before,
        weights_a_block=BLOCK,
        cores=rows,
        holds=not any(row["simulated"]["blocks_that_differ"] for row in rows),
    )


if __name__ == "__main__":
    main()
