"""From the name of a device to its engine."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterable, Iterator
from importlib.util import find_spec

from anytune.errors import UserError, did_you_mean

TORCH = ("cuda", "rocm", "xpu", "mps", "cpu-torch")
NUMBERED = (*TORCH, "webgpu")
DEVICES = ("auto", "numpy", "cpu", "cpu-bf16", *TORCH, "webgpu", "fpga-sim")


def unknown(device: str, known: Iterable[str]) -> UserError:
    """The error for an unknown device."""
    names = tuple(known)
    return UserError(f"there is no device {device!r}: --device takes {', '.join(names)}.{did_you_mean(device, names)}")


@contextlib.contextmanager
def _without_collection() -> Iterator[None]:
    """Python's cycle collector off: modules that load make objects by the hundred thousand, none of them garbage."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@_without_collection()
def engine_for(
    device: str = "auto",
    threads: int | None = None,
    compiled: bool | None = None,
    dtype: str = "auto",
    tf32: bool = False,
    max_binding: int | None = None,
):
    """The engine of a device name, with a number for one of several GPUs (cuda:1).

    threads: of CPU engines, None: as many as there are cores. dtype, tf32: of torch's devices; webgpu takes the dtype
    f32.
    max_binding: bytes of memory that a kernel of webgpu sees at once at most, None: what the device allows.
    Raises UserError for an unknown name, or one that is not available.
    """
    kind = device.partition(":")[0]
    if kind not in DEVICES or (":" in device and kind not in NUMBERED):
        raise unknown(device, DEVICES)
    if threads is not None and not 1 <= threads <= 1024:
        raise UserError(f"{threads} threads are out of range: give --threads between 1 and 1024")
    if kind == "auto":
        device = choose()
        kind = device.partition(":")[0]
    if max_binding is not None and kind != "webgpu":
        raise UserError(f"--max-binding applies only to --device webgpu: {device} has no bindings")
    if kind in TORCH:
        from .torch.devices import open_device

        where = open_device(device, dtype)
        from .torch.engine import TorchEngine

        return TorchEngine(where, tf32)
    if kind == "webgpu":
        if tf32 or dtype not in ("auto", "f32"):
            raise UserError(f"{'--tf32' if tf32 else f'--dtype {dtype}'} has no effect on {device}: it computes in f32")
        from .webgpu.engine import open_engine

        return open_engine(device, max_binding)
    if dtype != "auto" or tf32:
        raise UserError(
            f"--dtype and --tf32 are for PyTorch's GPUs (cuda, rocm, xpu, mps): {device} has a fixed number format"
        )
    from .probe import cores

    threads = threads or cores()
    if kind == "cpu-bf16":
        from .cpu_bf16 import CpuBf16Engine

        return CpuBf16Engine(threads, compiled)
    if kind == "fpga-sim":
        from .fpga_sim import FpgaSimEngine

        return FpgaSimEngine(threads, compiled)
    from .numpy.engine import NumpyEngine

    return NumpyEngine(threads, compiled)


def bf16_missing() -> str | None:
    """Why cpu-bf16 cannot run here; None if it can."""
    from .cpu_bf16 import missing

    return missing()


def gpu_unused(engine: str) -> str:
    """What would let a GPU that is here be used, to put behind a sentence; "" where there is nothing to say."""
    from .probe import gpu_node
    from .webgpu.detect import installed as wgpu

    if engine not in ("numpy", "cpu-bf16") or gpu_node() is None or wgpu() or find_spec("torch") is not None:
        return ""
    return (
        f". There is a GPU ({gpu_node()}), but neither PyTorch nor wgpu is installed: pip install torch, or pip "
        "install wgpu"
    )


def choose() -> str:
    """The device that auto means: the environment's ANYTUNE_DEVICE, a GPU that torch can use, or WebGPU, else the CPU
    engine that the doctor's probe found faster. Training an adapter has a choice of its own: anytune/train/device.py.

    torch takes seconds to import, so it is asked only where the system shows a GPU.
    """
    if own := os.environ.get("ANYTUNE_DEVICE"):
        return own
    from .probe import gpu_visible, remembered

    if gpu_visible():
        from .torch.devices import available

        found = available()
        if found:
            return found[0][0]
    from .webgpu.detect import hardware

    found = next(iter(hardware()), None) or remembered() or "numpy"
    # the doctor may have been asked in an environment that has Numba
    return "numpy" if found == "cpu-bf16" and bf16_missing() is not None else found
