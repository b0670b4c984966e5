"""load() as Python calls it: a model by the names that -m takes."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from anytune.arguments import public
from anytune.errors import UserError

if TYPE_CHECKING:
    from anytune.model import Model


@public({"dev": "device", "n_threads": "threads", "path": "model"})
def load(
    model: str | os.PathLike,
    device: str = "auto",
    threads: int | None = None,
    memory: int | str | None = None,
    compiled: bool | None = None,
    dtype: str = "auto",
    tf32: bool = False,
    max_binding: int | str | None = None,
) -> Model:
    """Open a GGUF on a device: `with anytune.load("model.gguf") as model`, which frees everything at its end.

    model           a file, or a name: smollm2-135m, ollama:qwen3:1.7b, lmstudio:…, hf:owner/repo:file, as far as it is
                    on this machine (anytune.pull fetches it)
    device          auto, cuda, cuda:1, rocm, xpu, mps, webgpu, cpu-bf16, numpy (or cpu), fpga-sim
    threads         of the CPU; None: what pays here
    memory          bytes, or such as "300MiB": of the GPU's memory, or of the machine's by the whole process
    compiled        None: with Numba where it is installed
    dtype, tf32     auto, bf16, fp16, f32 or fp8: of matrix products on a GPU; tf32: float32 ones on tensor cores
    max_binding     bytes, or such as "128MiB": with webgpu, what a kernel sees at once

    Raises UserError.
    """
    from anytune.hub.pull import local
    from anytune.memory import parse_bytes
    from anytune.model.model import load as open_model

    path = local(os.fspath(model))
    if not path.is_file():
        raise UserError(
            f"{path} is a folder, not a model file: name the file itself."
            if path.is_dir()
            else f"There is no model file {path}: check the path, or fetch one with anytune.pull('smollm2-135m')."
        )
    sizes = [parse_bytes(size) if isinstance(size, str) else size for size in (memory, max_binding)]
    return open_model(path, device, threads, sizes[0], compiled, dtype, tf32, sizes[1])


def opened_model(model: Any, device: str = "auto") -> Model:
    """A Model, or what load() takes, on `device`. Raises UserError for anything else."""
    if isinstance(model, str | os.PathLike):
        return load(model, device)
    if not hasattr(model, "gguf") or not hasattr(model, "logits"):
        raise UserError(f"model is a {type(model).__name__}: give what anytune.load returns, or takes.")
    return model


def read_files(opened: Model, adapter: Any) -> list[tuple[str, Any]]:
    """What is read, as spare_inputs takes it."""
    adapters = adapter if isinstance(adapter, list | tuple) else [adapter]
    return [("the model", opened.gguf.path), *given_files("an adapter", adapters)]


def given_files(what: str, given: Iterable[Any]) -> list[tuple[str, Any]]:
    return [(what, part) for part in given if isinstance(part, str | os.PathLike)]
