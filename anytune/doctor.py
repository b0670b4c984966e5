"""What this machine can do: devices, engines, versions, and whether every operation computes right here."""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import time
from typing import Any

from anytune.engine.probe import cpu_name

PACKAGES = (  # (distribution, what it is for, needed)
    ("numpy", "the base engine", True),
    ("jinja2", "chat templates", True),
    ("safetensors", "checkpoints and peft adapters", True),
    ("threadpoolctl", "BLAS threads", True),
    ("numba", "fast kernels: pip install numba", False),
    ("xllamacpp", "anytune verify: pip install xllamacpp", False),
    ("torch", "GPUs: pip install torch", False),
    ("triton", "fused GPU kernels; comes with torch for NVIDIA and AMD on Linux", False),
    ("wgpu", "any GPU through Vulkan, Metal or DX12: pip install wgpu", False),
)


def examine(threads: int | None = None) -> dict[str, Any]:
    """Facts about this machine, JSON-able; "ok" is False if an operation gave a wrong answer or a package is
    missing.

    Takes a few seconds: every operation of every engine is run on small shapes and compared with float64.
    """
    import anytune

    facts: dict[str, Any] = {
        "anytune": anytune.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "devices": _devices(),
        "packages": _packages(),
        "blas": _blas(),
        "blas_forced": os.environ.get("OPENBLAS_CORETYPE"),
    }
    facts["engines"] = [_engine(name, threads) for name in _engine_names()]
    facts["auto"] = _auto(facts["engines"])
    facts["ok"] = all(e["ok"] for e in facts["engines"]) and all(p["version"] for p in facts["packages"] if p["needed"])
    return facts


def _devices() -> list[dict[str, Any]]:
    from anytune.engine.probe import gpu_visible

    rows = [{"device": "cpu", "name": cpu_name(), "cores": _cores(), "memory_bytes": _memory()}]
    if gpu_visible():
        from anytune.engine.torch.devices import available

        rows += [
            {"device": device, "name": name, "cores": None, "memory_bytes": size} for device, name, size in available()
        ]
    from anytune.engine.webgpu.detect import gpu_visible

    if gpu_visible():
        from anytune.engine.webgpu.adapters import available as webgpus

        rows += [
            {"device": device, "name": name, "cores": None, "memory_bytes": None}
            for device, name, software in webgpus()
            if not software
        ]
    return rows


def _cores() -> int:
    from anytune.engine.probe import cores

    return cores()


def _memory() -> int | None:
    """Bytes of memory in this machine; None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def _packages() -> list[dict[str, Any]]:
    rows = []
    for name, purpose, needed in PACKAGES:
        try:
            version: str | None = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            version = None
        rows.append({"name": name, "version": version, "for": purpose, "needed": needed})
    return rows


def _blas() -> list[dict[str, Any]]:
    import numpy  # noqa: F401 (its library is what is looked at)
    import threadpoolctl

    return [
        {key: row.get(key) for key in ("internal_api", "version", "architecture", "num_threads")}
        for row in threadpoolctl.threadpool_info()
        if row.get("user_api") == "blas"
    ]


def _engine_names() -> list[str]:
    """CPU engines that can run here, and every GPU."""
    from anytune.engine.cpu_bf16 import missing

    return [
        "numpy",
        *(["cpu-bf16"] if missing() is None else []),
        *(row["device"] for row in _devices()[1:]),
        "fpga-sim",
    ]


def _auto(engines: list[dict[str, Any]]) -> dict[str, Any]:
    """What --device auto uses from now on: a working GPU, else the CPU engine that a short timing finds faster."""
    from anytune.engine.autotune import remember

    rates = {e["engine"]: e["gflops"] for e in engines if e.get("gflops") and e["ok"] and e["engine"] != "fpga-sim"}
    if not rates:
        return {"device": None, "gflops": {}}
    cpu = remember({name: rate for name, rate in rates.items() if name in ("numpy", "cpu-bf16")})
    gpus = [name for name in rates if name not in ("numpy", "cpu-bf16")]
    return {"device": gpus[0] if gpus else cpu, "gflops": rates}


def _engine(name: str, threads: int | None) -> dict[str, Any]:
    """Run the engine's operations against known answers."""
    from anytune.engine import autotune
    from anytune.engine.check import known_answers
    from anytune.engine.devices import engine_for

    start = time.perf_counter()
    try:
        engine = engine_for(name, threads)
        # the rate first: some engines choose their kernels by it
        gflops = round(autotune.rate(engine) if name in ("numpy", "cpu-bf16") else engine.flops_per_second() / 1e9, 1)
        rows = [
            {"operation": a.operation, "error": a.error if math.isfinite(a.error) else None, "ok": a.ok}
            for a in known_answers(engine)
        ]
    except Exception as error:  # a device that fails is a finding, not the end of the examination
        return {"engine": name, "ok": False, "problem": f"{type(error).__name__}: {error}", "operations": []}
    return {
        "engine": name,
        "ok": bool(rows) and all(row["ok"] for row in rows),
        "operations": rows,
        **{key: value for key, value in engine.identity().items() if key != "engine"},
        "gflops": gflops,
        **({"fp8_error": engine.fp8_error()} if engine.has_fp8 else {}),
        "seconds": round(time.perf_counter() - start, 2),
    }


def report(facts: dict[str, Any]) -> str:
    """The facts of `examine` for a person."""
    from anytune.units import bytes_text

    lines = [f"anytune {facts['anytune']}, Python {facts['python']}, {facts['system']}"]
    for d in facts["devices"]:
        lines.append(
            f"device   {d['device']}: {d['name']}"
            + (f", {d['cores']} cores" if d["cores"] else "")
            + (f", {bytes_text(d['memory_bytes'])}" if d["memory_bytes"] else "")
        )
    for p in facts["packages"]:
        if p["version"]:
            lines.append(f"package  {p['name']} {p['version']}")
        else:
            lines.append(f"package  {p['name']} is {'MISSING' if p['needed'] else 'not installed'} ({p['for']})")
    for b in facts["blas"]:
        lines.append(
            f"blas     {b['internal_api']} {b['version']}, kernels {b['architecture']}"
            + (" (your environment forces them: OPENBLAS_CORETYPE)" if facts["blas_forced"] else "")
        )
    for e in facts["engines"]:
        if "problem" in e:
            lines.append(f"engine   {e['engine']}: FAILED, {e['problem']}")
            continue
        bad = [row for row in e["operations"] if not row["ok"]]
        worst = max((row["error"] for row in e["operations"] if row["ok"]), default=0.0)
        lines.append(
            f"engine   {e['engine']}: {len(e['operations']) - len(bad)} of {len(e['operations'])} operations "
            "give "
            f"known answers (relative error up to {worst:.0e}, {e['seconds']} s)"
            + (", compiled kernels" if e.get("compiled") else "")
            + (f", {e['gflops']:,.0f} GFLOP/s" if e.get("gflops") else "")
            + (f"; --dtype fp8 runs (off by {100 * e['fp8_error']:.0f} % a product)" if "fp8_error" in e else "")
        )
        lines += [
            f"         WRONG: {row['operation']}, "
            + ("not numbers" if row["error"] is None else f"relative error {row['error']:.1e}")
            for row in bad
        ]
    if facts.get("auto", {}).get("device"):
        lines.append(f"auto     --device auto takes {facts['auto']['device']}")
    return "\n".join([*lines, "all good" if facts["ok"] else "something is wrong: see the lines in capitals above"])
