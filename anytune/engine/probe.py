"""What this machine has: cores, processor, GPUs that the system shows; and BLAS held to one thread."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import platform
import sys
from pathlib import Path


@functools.cache
def one_blas_thread() -> None:
    """Hold NumPy's BLAS to one thread for this process: the engine's workers divide the work themselves."""
    import numpy  # noqa: F401 (the library must be loaded before it can be set)
    from threadpoolctl import threadpool_limits

    threadpool_limits(1, user_api="blas")


def cores() -> int:
    """Cores that this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS or Windows
        return os.cpu_count() or 1


def gpu_visible() -> bool:
    """Whether the system shows a GPU that torch might use, without importing torch, and torch is installed."""
    return importlib.util.find_spec("torch") is not None and gpu_node() is not None


def gpu_node() -> str | None:
    """By what the system shows a GPU that torch might use; None if it shows none."""
    if sys.platform == "darwin":
        return "Apple's" if platform.machine() == "arm64" else None
    if sys.platform == "win32":
        system = Path(os.environ.get("SystemRoot", r"C:\Windows"), "System32")
        drivers = ("nvcuda.dll", "amdhip64.dll", "ze_loader.dll")
        return next((name for name in drivers if (system / name).exists()), None)
    nodes = ("/dev/nvidia0", "/dev/kfd", "/dev/dxg", "/dev/dri/renderD128")
    return next((name for name in nodes if Path(name).exists()), None)


def memo() -> Path:
    """Where the doctor leaves what it measured; the environment's ANYTUNE_PROBE names another file."""
    if own := os.environ.get("ANYTUNE_PROBE"):
        return Path(own)
    own = os.environ.get("ANYTUNE_HOME")
    return Path(own or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "anytune") / "probe.json"


def remembered() -> str | None:
    """The CPU engine that the doctor found faster on this processor; None if it has not been asked."""
    try:
        found = json.loads(memo().read_text("utf-8"))
        engine = found["engine"] if found["cpu"] == cpu_name() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return engine if engine in ("numpy", "cpu-bf16") else None


def cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
