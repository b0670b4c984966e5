"""What fits: model size x type x memory, by the planner that training itself asks, on files that hold shapes alone.

    python bench/fits.py

Each model is a sparse file of the published shape with nothing in its tensors: the planner runs the model's own code on
shapes. The engine is the CPU's; what is counted is the whole process.
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import Any

import common

import anytune
from anytune.errors import UserError
from anytune.model import Lora
from anytune.model.plan import plan_training
from anytune.model.spec import LoraSpec
from tests.support.sparse import Published, qwen3, write_shape

TYPES = ("F32", "F16", "Q8_0", "Q4_0")
SIZES = (4, 6, 8, 16, 24)  # GiB
TOKENS, RANK = 512, 16  # the defaults of training


def _gemma3(width: int, hidden: int, layers: int, heads: int, keys: int, window: int) -> Published:
    return Published(
        "gemma3",
        layers,
        width,
        heads,
        keys,
        256,
        hidden,
        True,
        qk_norm=True,
        post_norm=True,
        spm=True,
        meta={"attention.sliding_window": window},
        vocabulary=262_144,
    )


MODELS = {
    "Qwen3 0.6B": qwen3(1024, 3072, 28, 16),
    "Gemma 3 1B": _gemma3(1152, 6912, 26, 4, 1, 512),
    "TinyLlama 1.1B": Published("llama", 22, 2048, 32, 4, 64, 5632, spm=True, vocabulary=32_000),
    "Llama 3.2 1B": Published("llama", 16, 2048, 32, 8, 64, 8192, True, vocabulary=128_256),
    "Qwen3 1.7B": qwen3(2048, 6144, 28, 16),
    "Llama 3.2 3B": Published("llama", 28, 3072, 24, 8, 128, 8192, True, vocabulary=128_256),
    "Qwen3 4B": qwen3(2560, 9728, 36, 32),
    "Gemma 3 4B": _gemma3(2560, 10_240, 34, 8, 4, 1024),
    "Mistral 7B": Published("llama", 32, 4096, 32, 8, 128, 14_336, spm=True, vocabulary=32_768),
    "Qwen3 8B": qwen3(4096, 12_288, 36, 32, tied=False),
}


def plans(path: Path) -> dict[str, Any]:
    """size in GiB -> {"how": fits, recomputes, streams or too large, "peak_mib", "text"}, and the file's size."""
    model = anytune.load(path, device="numpy", threads=2)
    lora = Lora(rank=RANK)
    names = lora.tensors(model.gguf, model.config.layers)
    subject = LoraSpec(lora, {name: model.gguf.tensors[name].shape for name in names})
    found: dict[str, Any] = {"file_mib": round(os.path.getsize(path) / common.MIB), "sizes": {}}
    for size in SIZES:
        try:
            e = plan_training(model, subject, TOKENS, TOKENS, size << 30)
        except UserError as error:
            least = re.search(r"at least (\d+) MiB", str(error))
            found["sizes"][str(size)] = {"how": "too large", "peak_mib": int(least[1]) if least else None}
            continue
        how = "streams" if e.hold == "stream" else "recomputes" if "twice" in e.text else "fits"
        found["sizes"][str(size)] = {"how": how, "peak_mib": round(e.peak_bytes / common.MIB), "text": e.text}
    return found


def main() -> None:
    options = common.parser(__doc__)
    args, before = options.parse_args(), common.machine()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, shape in MODELS.items():
            for kind in TYPES:
                path = Path(folder) / "shape.gguf"
                write_shape(path, shape, kind)
                rows.append({"model": name, "type": kind, **plans(path)})
                path.unlink()
    common.save("fits", args, before, tokens=TOKENS, rank=RANK, sizes_gib=list(SIZES), rows=rows)


if __name__ == "__main__":
    main()
