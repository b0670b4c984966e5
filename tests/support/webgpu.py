"""WebGPU for the tests: a Vulkan device, of software where there is no other."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.require import need

ROOT = Path(__file__).parents[2]
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


CONSTANT = ("square_sums", "gemm NT, Q8_0, 64")  # of the known sum and of the probe, whatever the limit


@contextlib.contextmanager
def checked_bindings():
    """Let no dispatch have a binding beyond the device's limit, which software devices do not enforce (from 8 KiB on:
    partial sums and the like are bound whole), or one that ends within a vec4: NVIDIA's driver reads zeros there,
    Mesa's what lies behind."""
    from anytune.engine.webgpu.arrays import Bound
    from anytune.engine.webgpu.commands import Commands

    run = Commands.run

    def checked(self, kernel, arrays, *more):
        bounds = [array if isinstance(array, Bound) else array.bind() for array in arrays]
        for held, (name, _, element) in zip(bounds, kernel.arrays, strict=True):
            whole = not element.startswith("vec4") or held.size % 16 == 0
            fits = held.size <= max(8192, self.device.max_binding) or kernel.name.startswith(CONSTANT)
            assert whole and fits, (kernel.name, name, held.size)
        return run(self, kernel, bounds, *more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Commands, "run", checked)
        yield


def on_swiftshader(script: str, *arguments) -> dict:
    """What a Python script prints as JSON in a process that sees SwiftShader alone; skips where it is not installed."""
    driver = next((path for path in SWIFTSHADER if path.exists()), None) or need(SWIFTSHADER[0])
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "VK_DRIVER_FILES": str(driver),
        "VK_ICD_FILENAMES": str(driver),
        "ANYTUNE_MAX_BINDING": "64KiB",
    }
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert "SwiftShader" in facts["device"]
    return facts
