"""The devices that wgpu sees, and opening one of them."""

from __future__ import annotations

import contextlib
import functools
import os
from typing import Any

from anytune.errors import UserError

from .device import Device


def wgpu_module():
    """wgpu, imported; UserError if it is not installed or its library cannot be loaded."""
    try:
        import wgpu
        import wgpu.backends.wgpu_native  # noqa: F401 (loads the library)
    except ImportError:
        raise UserError(
            "--device webgpu needs the package wgpu, which is not installed: pip install "
            "'wgpu>=0.32,<0.33', or train with --device numpy"
        ) from None
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"--device webgpu: wgpu's library cannot be loaded ({error}); on Android set WGPU_LIB_PATH "
            "(see docs/webgpu.md)"
        ) from None
    return wgpu


@contextlib.contextmanager
def _quiet():
    """Loaders write warnings about other drivers straight to the terminal while adapters are listed."""
    try:
        kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    except OSError:
        yield
        return
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)


@functools.cache
def adapters() -> tuple[Any, ...]:
    """Adapters that can compute, GPUs before software ones; OpenGL is left out, its compute limits are too narrow."""
    module = wgpu_module()
    with _quiet():
        found = module.gpu.enumerate_adapters_sync()
    order = {"DiscreteGPU": 0, "IntegratedGPU": 1, "CPU": 3}
    rows = [a for a in found if a.info["backend_type"] in ("Vulkan", "Metal", "D3D12")]
    # a GPU may be seen through two drivers: the first that wgpu names is its native one
    return tuple(sorted(rows, key=lambda a: order.get(a.info["adapter_type"], 2)))


def available() -> list[tuple[str, str, bool]]:
    """(name for --device, what it is, whether it is software) of every adapter; empty without wgpu."""
    try:
        found = adapters()
    except UserError:
        return []
    return [
        (
            f"webgpu:{i}" if i else "webgpu",
            f"{a.info['device'] or a.info['description']} ({a.info['backend_type']})",
            a.info["adapter_type"] == "CPU",
        )
        for i, a in enumerate(found)
    ]


def open_device(number: int | None = None, max_binding: int | None = None, trusted: bool | None = None) -> Device:
    """The adapter of a number (as `anytune doctor` lists them); None: the first. Raises UserError."""
    found = adapters()
    index = number or 0
    if index >= len(found):
        seen = (
            f"wgpu sees {len(found)} device{'s' * (len(found) != 1)} here"
            if found
            else "wgpu sees no Vulkan, Metal or DX12 driver here (docs/webgpu.md says what to install)"
        )
        asked = "webgpu" if number is None else f"webgpu:{number}"
        raise UserError(f"--device {asked}: {seen}; anytune doctor lists the devices")
    return Device(found[index], max_binding, trusted)
