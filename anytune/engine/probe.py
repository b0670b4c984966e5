"""How many threads pay on this machine now, and BLAS held to one of them."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import platform
import sys
import time
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


def best_threads(limit: int | None = None, milliseconds: float = 25.0) -> tuple[int, dict[int, float]]:
    """(threads, {threads: GFLOP/s}): a short product timed with 1, 2, 4 … workers up to the cores there are.

    More threads are taken only if they gain 15 %: on a shared machine, or with two hardware threads to a core,
    they often do not.
    """
    import numpy as np

    from .numpy.workers import Workers

    one_blas_thread()
    limit = limit or cores()
    counts = sorted({1, *(2**i for i in range(1, 8) if 2**i < limit), limit})
    rates: dict[int, float] = {}
    best = 1
    for count in counts:
        workers, n = Workers(count), 256
        data = [np.ones((n, n), np.float32) for _ in range(3)]
        outs = [np.empty((n, n), np.float32) for _ in range(count)]

        def work(number: int) -> None:
            for _ in range(3):
                np.matmul(data[0], data[1], out=outs[number])

        workers.run(work)
        times = []
        begin = time.perf_counter()
        while time.perf_counter() - begin < milliseconds / 1000 or len(times) < 3:
            start = time.perf_counter()
            workers.run(work)
            times.append(time.perf_counter() - start)
        workers.close()
        rates[count] = count * 3 * 2 * n**3 / sorted(times)[len(times) // 2] / 1e9
        if rates[count] > rates[best] * 1.15:
            best = count
    return best, rates


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
