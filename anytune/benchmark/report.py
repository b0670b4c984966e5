"""One file about a machine that a stranger can attach to a report: devices, checks, speed, versions, and no names.

Speed is that of a small random model which is made on the spot, so that nothing is fetched and machines compare.
"""

from __future__ import annotations

import datetime
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from anytune.files import atomic_write, cannot_write

from . import cases, run
from .document import without_folders
from .machine import machine, versions

FORMAT, VERSION = "anytune-report", 1
WIDTH, HIDDEN, LAYERS, HEADS, KEYS, VOCABULARY = 512, 1536, 8, 8, 4, 8192
TESTS = (cases.Test("train", 128), cases.Test("prompt", 128), cases.Test("generate", 32))
PACKAGES = (
    *("anytune", "numpy", "numba", "llvmlite", "torch", "triton", "wgpu", "xllamacpp", "safetensors", "threadpoolctl"),
    *("jinja2", "click", "rich", "huggingface_hub", "fastapi"),
)


def machine_report(
    facts: dict[str, Any], devices: Sequence[str], progress: Callable[[int, int, str], None] = lambda *_: None
) -> dict[str, Any]:
    """The report, JSON-able. facts: of anytune.doctor.examine; devices: those whose speed is measured."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "standard.gguf"
        write_standard_model(model)
        todo = cases.cells([model], devices, (), TESTS, peer=False)
        whole = run.measure(todo, cases.Settings(repeats=3), rows.append, progress)
        said = _nameless(
            {"doctor": {**facts, "system": machine()["system"]}, "bench": rows, "bench_interrupted": not whole}, model
        )
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    head = {"format": FORMAT, "version": VERSION, "date": now, "machine": machine(), "versions": versions(PACKAGES)}
    return {**head, **said}


def save(report: dict[str, Any], path: Path) -> None:
    """Raises UserError."""
    try:
        with atomic_write(path, "w") as file:
            file.write(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    except OSError as error:
        raise cannot_write(path, error) from None


def write_standard_model(path: Path) -> None:
    """26 million random weights in Q8_0, of the llama architecture, without a tokenizer: sizes are what counts."""
    from anytune.gguf import write_gguf

    random = np.random.default_rng(0)

    def matrix(name: str, rows: int, columns: int) -> tuple:
        blocks = random.integers(0, 256, (rows, columns // 32, 34), dtype=np.uint8)
        blocks[:, :, :2] = np.frombuffer(np.float16(1 / (74 * columns**0.5)).tobytes(), np.uint8)  # keeps values near 1
        return name, (rows, columns), "Q8_0", blocks.reshape(rows, -1)

    def norm(name: str) -> tuple:
        return name, (WIDTH,), "F32", np.ones(WIDTH, np.float32)

    size = WIDTH // HEADS
    tensors = [matrix("token_embd.weight", VOCABULARY, WIDTH), norm("output_norm.weight")]
    for layer in range(LAYERS):
        shapes = {
            **{"attn_q": (WIDTH, WIDTH), "attn_k": (KEYS * size, WIDTH), "attn_v": (KEYS * size, WIDTH)},
            **{"attn_output": (WIDTH, WIDTH), "ffn_gate": (HIDDEN, WIDTH), "ffn_up": (HIDDEN, WIDTH)},
            "ffn_down": (WIDTH, HIDDEN),
        }
        tensors += [norm(f"blk.{layer}.{name}.weight") for name in ("attn_norm", "ffn_norm")]
        tensors += [matrix(f"blk.{layer}.{name}.weight", *shape) for name, shape in shapes.items()]
    own = {
        **{"block_count": LAYERS, "context_length": 2048, "embedding_length": WIDTH, "feed_forward_length": HIDDEN},
        **{"attention.head_count": HEADS, "attention.head_count_kv": KEYS, "vocab_size": VOCABULARY},
        **{"attention.layer_norm_rms_epsilon": 1e-5, "rope.freq_base": 10000.0, "rope.dimension_count": size},
    }
    metadata = {"general.architecture": "llama", "general.name": "standard"}
    write_gguf(path, metadata | {f"llama.{key}": value for key, value in own.items()}, tensors)


def _nameless(value: Any, *known: Path) -> Any:
    if isinstance(value, dict):
        return {key: _nameless(item, *known) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_nameless(item, *known) for item in value]
    return without_folders(value, *known) if isinstance(value, str) else value
