"""What a device's failures mean for a person: out of memory, or gone."""

from __future__ import annotations

import torch

from anytune.units import bytes_text

from .budget import peak

MARKS = (
    "CUDA error",
    "HIP error",
    "cuBLAS",
    "CUBLAS",
    "cuDNN",
    "XPU error",
    "MPS backend",
    "NCCL",
    "device-side assert",
    "Level Zero",
)


def explain(engine, error: Exception, estimate: int | None = None) -> str | None:
    """A sentence for what a device raised, or None if `error` is of another kind."""
    if isinstance(error, torch.OutOfMemoryError):
        about = f"about {bytes_text(estimate)} were estimated, and " if estimate else ""
        free = (
            f", and {bytes_text(torch.cuda.mem_get_info(engine.device)[0])} are free now"
            if engine.device.type == "cuda"
            else ""
        )
        return (
            f"The GPU ran out of memory: {about}{bytes_text(peak(engine))} were used at the peak{free}. Set "
            "--memory slightly below what is free (activations are then computed twice), or lower -ub, -c or "
            "--lora-rank."
        )
    text = str(error)
    if isinstance(error, RuntimeError) and any(mark in text for mark in MARKS):
        return (
            f"The device failed ({' '.join(text.split())[:160]}). Run anytune doctor; the same command with "
            "--resume-from auto continues from the last checkpoint."
        )
    return None
