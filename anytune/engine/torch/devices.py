"""From a device's name to a torch device, the number format that it computes in, and what it can do."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any

from anytune.errors import UserError, did_you_mean

KINDS = ("cuda", "rocm", "xpu", "mps", "cpu-torch")
DTYPES = ("auto", "bf16", "fp16", "f32", "fp8")


@dataclass(frozen=True)
class Device:
    """kind: one of KINDS; device: torch's; dtype: of matrix products; triton: whether its kernels run here; fp8: input
    gradients pass frozen weights in fp8."""

    kind: str
    device: Any
    dtype: Any
    triton: bool
    fp8: bool = False

    @property
    def offloads(self) -> bool:
        """Whether layer inputs can wait in the host's memory."""
        return self.kind in ("cuda", "rocm")

    @property
    def graphs(self) -> bool:
        """Whether a step can be recorded and replayed (torch.cuda.CUDAGraph; ROCm answers to the same name). Without
        Triton the attention reads the examples' boundaries on the host, which no recording would follow."""
        return self.triton and self.kind in ("cuda", "rocm")


def torch_module():
    """torch, imported; UserError if it is not installed."""
    try:
        import torch
    except ImportError:
        raise UserError(
            "this device needs PyTorch, which is not installed: pip install torch (for AMD, Intel or a "
            "small CPU build see pytorch.org), or train with --device numpy"
        ) from None
    return torch


def open_device(name: str, dtype: str = "auto") -> Device:
    """The device of a name such as cuda, cuda:1 or mps. Raises UserError, saying what is missing."""
    kind, _, number = name.partition(":")
    if kind not in KINDS or (number and not (number.isdigit() and kind in ("cuda", "rocm", "xpu"))):
        raise UserError(
            f"there is no device {name!r}: --device takes {', '.join(KINDS)}, with a number as in cuda:1."
            + did_you_mean(kind, KINDS)
        )
    if dtype not in DTYPES:
        raise UserError(f"there is no number format {dtype!r}: --dtype takes {', '.join(DTYPES)}")
    torch = torch_module()
    index, fp8 = int(number or 0), dtype == "fp8"
    if fp8 and kind not in ("cuda", "cpu-torch"):
        raise UserError(f"--dtype fp8 needs an NVIDIA GPU, not {kind}: omit it, or use bf16")
    if kind == "cpu-torch":  # fp8: rounded as there, and multiplied in float32
        return Device(kind, torch.device("cpu"), _choose(torch, dtype, "f32"), False, fp8)
    count, found = _present(torch, kind)
    if index >= count:
        raise UserError(f"--device {name}: {found}; anytune doctor lists the devices")
    if kind == "mps":
        return Device(
            kind, torch.device("mps"), _choose(torch, dtype, "bf16" if _bf16_runs(torch, "mps") else "fp16"), False
        )
    if kind == "xpu":
        return Device(kind, torch.device("xpu", index), _choose(torch, dtype, "bf16"), _has_triton())
    torch.cuda.set_device(index)
    major, minor = torch.cuda.get_device_capability(index)
    if fp8 and not has_fp8(torch.device("cuda", index)):
        raise UserError(
            f"--dtype fp8 needs a GPU with 8-bit floats (RTX 40, L4, H100 and later), and {name} has compute "
            f"capability {major}.{minor}: omit it, or use bf16"
        )
    bf16 = kind == "rocm" or major >= 8
    return Device(
        kind,
        torch.device("cuda", index),
        _choose(torch, dtype, "bf16" if bf16 else "fp16"),
        _has_triton() and (kind == "rocm" or major >= 8),
        fp8,
    )


def has_fp8(device) -> bool:
    """Whether a torch device multiplies 8-bit floats."""
    torch = torch_module()
    return device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 9)


def _choose(torch, asked: str, best: str):
    asked = best if asked in ("auto", "fp8") else asked
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "f32": torch.float32}[asked]


def _present(torch, kind: str) -> tuple[int, str]:
    """(how many there are, a phrase saying why there are no more)."""
    built = torch.__version__
    if kind in ("cuda", "rocm"):
        right = (torch.version.hip is not None) == (kind == "rocm")
        count = torch.cuda.device_count() if right and torch.cuda.is_available() else 0
        return count, (
            f"torch {built} sees {count} such GPU{'s' * (count != 1)}"
            if right
            else f"torch {built} is not built for {kind}"
        )
    if kind == "xpu":
        count = torch.xpu.device_count() if hasattr(torch, "xpu") and torch.xpu.is_available() else 0
        return count, f"torch {built} sees {count} Intel GPUs"
    here = torch.backends.mps.is_available()
    return int(here), f"torch {built} sees no Apple GPU"


def _bf16_runs(torch, device: str) -> bool:
    try:
        one = torch.ones(2, 2, dtype=torch.bfloat16, device=device)
        return float((one @ one)[0, 0]) == 2.0
    except (RuntimeError, TypeError):
        return False


def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def available() -> list[tuple[str, str, int | None]]:
    """(name, what it is, bytes of memory if torch says) of every GPU that torch can use here; empty without torch."""
    if importlib.util.find_spec("torch") is None:
        return []
    import torch

    found = []

    def add(kind: str, module) -> None:
        for index in range(module.device_count()):
            facts = module.get_device_properties(index)
            found.append((f"{kind}:{index}" if index else kind, facts.name, int(facts.total_memory)))

    if torch.cuda.is_available():
        add("rocm" if torch.version.hip else "cuda", torch.cuda)
    if hasattr(torch, "xpu") and torch.xpu.is_available():
        add("xpu", torch.xpu)
    if torch.backends.mps.is_available():
        found.append(("mps", "Apple GPU", None))
    return found
