"""Whether listing WebGPU devices is worth the time, without loading a driver."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

# a render node, NVIDIA's own, WSL's, and those of Qualcomm's and Arm's drivers
NODES = ("/dev/dri/renderD128", "/dev/nvidia0", "/dev/dxg", "/dev/kgsl-3d0", "/dev/mali0")


def installed() -> bool:
    return importlib.util.find_spec("wgpu") is not None


def gpu_visible() -> bool:
    """wgpu is installed, and the system shows a GPU (or always has one)."""
    if not installed():
        return False
    return not sys.platform.startswith("linux") or any(Path(node).exists() for node in NODES)


def hardware() -> list[str]:
    """Names for --device of GPUs that wgpu can use; software devices are no GPUs."""
    if not gpu_visible():
        return []
    from .adapters import available

    return [name for name, _, software in available() if not software]
