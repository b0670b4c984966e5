"""WebGPU for the tests: a Vulkan device, of software where there is no other."""

import os
import sys
from pathlib import Path

import pytest

from tests.support.require import need

# where webgpu_setup.py leaves it, and where Chromium's packages do
SWIFTSHADER = [
    Path(folder) / "vk_swiftshader_icd.json" for folder in (f"{sys.prefix}/swiftshader", "/usr/lib/chromium")
]


def need_webgpu():
    """Fail or skip, as require.need() does, where wgpu or a device is missing."""
    need("wgpu")
    from anytune.engine.webgpu.adapters import adapters

    if not adapters():
        problem = "wgpu sees no Vulkan, Metal or DX12 device: apt-get install mesa-vulkan-drivers libvulkan1"
        if os.environ.get("ANYTUNE_REQUIRE_PEERS") == "1":
            pytest.fail(problem)
        pytest.skip(problem)


def swiftshader() -> Path:
    """The loader's file for SwiftShader; skips where it is not installed."""
    for path in SWIFTSHADER:
        if path.exists():
            return path
    return need(SWIFTSHADER[0])
