"""What a measurement ran on, without anything personal: no names of users, hosts or folders."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from pathlib import Path
from typing import Any

from anytune import __version__
from anytune.engine.probe import cores, cpu_name

PACKAGES = ("anytune", "numpy", "numba", "torch", "triton", "wgpu", "xllamacpp")
# AMD's families and models (`cpu family`, `model` of /proc/cpuinfo), since server parts hide theirs behind one name
ZEN = (
    (23, 0x00, "Zen 1"),
    (23, 0x30, "Zen 2"),
    (25, 0x00, "Zen 3"),
    (25, 0x10, "Zen 4"),
    (25, 0x20, "Zen 3"),
    (25, 0x60, "Zen 4"),
    (26, 0x00, "Zen 5"),
)
SIMD = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16")


def machine() -> dict[str, Any]:
    """CPU model, its vector instructions, cores that may be used, memory, system, load of the minute before."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    return {
        "cpu": cpu_name(),
        "generation": _generation(),
        "simd": _simd(),
        "cores": cores(),
        "memory_gib": round(memory / 2**30, 1),
        "system": _system(),
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def _system() -> str:
    """The system and its version's numbers: what people call a kernel that they built is theirs."""
    number = re.match(r"[0-9.]*", platform.release())[0].rstrip(".")
    return f"{platform.system()} {number}".strip()


def _generation() -> str | None:
    """Zen 4 or its like; None where it is not known."""
    try:
        text = Path("/proc/cpuinfo").read_text("ascii", "replace")
    except OSError:
        return None
    facts = dict(re.findall(r"(?m)^(vendor_id|cpu family|model)\s*: (\S+)$", text))
    if facts.get("vendor_id") != "AuthenticAMD" or not {"cpu family", "model"} <= set(facts):
        return None
    family, model = int(facts["cpu family"]), int(facts["model"])
    return next((name for f, least, name in reversed(ZEN) if f == family and model >= least), None)


def _simd() -> list[str]:
    try:
        for line in Path("/proc/cpuinfo").read_text("ascii", "replace").splitlines():
            if line.startswith("flags"):
                flags = set(line.split())
                return [name for name in SIMD if name in flags]
    except OSError:
        pass
    return []


def versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Versions of those that are installed; anytune's own is that of the sources, which need no installation."""
    found = {}
    for name in packages:
        try:
            found[name] = __version__ if name == "anytune" else importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            pass
    return found
