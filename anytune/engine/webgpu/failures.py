"""What wgpu's errors mean: the device has no memory left, was lost, or failed otherwise."""

from __future__ import annotations

import contextlib

from anytune.errors import UserError
from anytune.units import bytes_text

ADVICE = {
    "memory": "the device has no memory left ({}): set --memory slightly below what is free, or lower -ub, -c or "
    "--lora-rank",
    "lost": "the device was lost: its driver was reset or removed ({}): run anytune doctor, then the same command "
    "again",
    "other": "the device failed ({}): run anytune doctor",
}


class DeviceError(UserError, RuntimeError):
    """The device failed. kind: memory, lost or other; detail: the driver's message."""

    def __init__(self, kind: str, detail: str):
        super().__init__(ADVICE[kind].format(detail))
        self.kind, self.detail = kind, detail


def _kind(text: str) -> str:
    low = text.lower()
    if "out of memory" in low or "not enough memory" in low or "outofmemory" in low:
        return "memory"
    return "lost" if any(word in low for word in ("lost", "hung", "destroyed", "invalid device")) else "other"


@contextlib.contextmanager
def failures():
    """Turn wgpu's errors into DeviceErrors."""
    from wgpu import GPUError

    try:
        yield
    except GPUError as error:
        text = " ".join(str(error).split())
        kind = "memory" if type(error).__name__ == "GPUOutOfMemoryError" else _kind(text)
        raise DeviceError(kind, text[:300]) from None


def explain(engine, error: Exception, estimate: int | None = None) -> str | None:
    """A sentence for what the device raised, or None if `error` is of another kind."""
    if not isinstance(error, DeviceError):
        return None
    if error.kind == "memory":
        about = f"about {bytes_text(estimate)} were estimated, and " if estimate else ""
        taken = bytes_text(engine.device.peak)
        return (
            f"The device {engine.device.name} ran out of memory: {about}{taken} were used at the peak. Set --memory "
            "slightly below what is free (activations are then computed twice, or weights copied at each use), "
            "or lower -ub, -c or --lora-rank."
        )
    what = "was lost (its driver was reset or removed)" if error.kind == "lost" else "failed"
    return (
        f"The device {engine.device.name} {what}: {error.detail[:160]}. Run anytune doctor; the same command with "
        "--resume-from auto continues from the last checkpoint, also on another --device."
    )
