"""Which CPU engine is faster here: one linear with a low-rank pair, forward and backward, timed on each."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

import numpy as np

from anytune.files import atomic_write

from .probe import cpu_name, memo

TOKENS, WIDTH, OUT, RANK = 256, 1024, 2048, 16


def rate(engine, milliseconds: float = 200.0) -> float:
    """GFLOP/s of the products of a quantized linear with its pair, forward and backward."""
    from anytune.gguf import GGUF, write_gguf

    random = np.random.default_rng(0)

    def draw(*shape: int) -> np.ndarray:
        return random.standard_normal(shape).astype(np.float32)

    with tempfile.TemporaryDirectory(prefix="anytune-autotune-") as folder:
        path = Path(folder) / "w.gguf"
        write_gguf(path, {"general.architecture": "autotune"}, [("w", (OUT, WIDTH), "Q8_0", 0.03 * draw(OUT, WIDTH))])
        with GGUF.open(path) as gguf:
            a, b = draw(RANK, WIDTH), draw(OUT, RANK)
            group = engine.group(
                [engine.weight(gguf, "w")], None, [engine.lora_pair(a, b, 1.0, np.zeros_like(a), np.zeros_like(b))]
            )
            engine.begin(np.array([0, TOKENS], np.int32), TOKENS, (0, 0, 0))
            engine.row_padding = RANK
            x, dy, gain = (
                engine.vector(z) for z in (draw(TOKENS, WIDTH), draw(TOKENS, OUT), np.ones(WIDTH, np.float32))
            )
            times, begin = [], time.perf_counter()
            while time.perf_counter() - begin < milliseconds / 1000 or len(times) < 4:
                start = time.perf_counter()
                engine.norm_linear(x, gain, 1e-6, group)
                engine.norm_linear_backward((dy,), x, gain, 1e-6, group, None)
                times.append(time.perf_counter() - start)
            engine.release()
    return 2 * 2.0 * TOKENS * WIDTH * OUT / sorted(times)[len(times) // 2] / 1e9


def remember(rates: dict[str, float]) -> str:
    """Leave the faster engine's name for --device auto; another must be 10 % faster than the float32 one. -> it."""
    best = max(rates, key=lambda name: rates[name] * (1.1 if name == "numpy" else 1.0))
    try:
        memo().parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(memo()) as file:
            file.write(json.dumps({"engine": best, "cpu": cpu_name(), "gflops": rates}, indent=1).encode())
    except OSError:
        pass  # a memory that cannot be kept is no reason to stop: auto stays what it was
    return best
