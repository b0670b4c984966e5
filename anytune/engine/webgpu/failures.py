"""What a device's failures mean for a person: out of memory, or gone."""

from __future__ import annotations

from anytune.units import bytes_text

from .device import DeviceError


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
