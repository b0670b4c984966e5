"""Faster kernels that need more than WebGPU's defaults: which of them this device and the environment allow, and which
compute rightly. tune.py races those.

ANYTUNE_WEBGPU_VARIANTS forces those that it names and forbids those with a - before them; none forbids all.
"""

from __future__ import annotations

import os

from anytune.errors import UserError

from .kernel import F16, SUBGROUPS

ROWS, GEMV, TILES, DOT = "subgroup-rows", "subgroup-gemv", "f16-tiles", "int8-gemv"
NEEDS = {ROWS: SUBGROUPS, GEMV: SUBGROUPS, TILES: F16, DOT: None}
ROUNDS = (TILES, DOT)  # operands, so these are for --dtype fp16 alone
VARIABLE = "ANYTUNE_WEBGPU_VARIANTS"
LIMIT = 1e-5  # relative error to the NumPy twin, which rounds where the kernel does


def asked() -> dict[str, bool]:
    """{variant: forced, or forbidden} as the environment says. Raises UserError."""
    words = os.environ.get(VARIABLE, "").replace(",", " ").split()
    if words == ["none"]:
        return dict.fromkeys(NEEDS, False)
    for word in words:
        if word.removeprefix("-") not in NEEDS:
            raise UserError(
                f"{VARIABLE}: no variant is called {word.removeprefix('-')!r}: it takes none, or of "
                f"{', '.join(NEEDS)} those to force, and those to forbid with a - before them"
            )
    return {word.removeprefix("-"): not word.startswith("-") for word in words}


def features_wanted() -> set[str]:
    """What to ask a device for: nothing that only forbidden variants need."""
    said = asked()
    return {need for name, need in NEEDS.items() if need and said.get(name) is not False}


def _has(device, variant: str) -> bool:
    return NEEDS[variant] is None or NEEDS[variant] in device.features


def sound(e) -> tuple[set[str], set[str]]:
    """(variants that may be used on engine e, those of them that must be). Each has given its known answer.

    A software device gets what is forced only, and float16 where that is asked for: there nothing is gained. Raises
    UserError if one that is forced cannot be had or computes wrongly.
    """
    from .answers import ANSWERS
    from .device import DeviceError

    said, name = asked(), e.device.name
    forced = {variant for variant, on in said.items() if on}
    for variant in sorted(forced):
        if not _has(e.device, variant):
            raise UserError(
                f"{VARIABLE} asks for {variant}, and the device {name} has no {NEEDS[variant]}: leave it out"
            )
        if variant in ROUNDS and not e.half:
            raise UserError(f"{VARIABLE} asks for {variant}, which --dtype fp16 allows: give both, or leave it out")
    free = {v for v in NEEDS if (e.half or v not in ROUNDS) and (v == TILES or not e.device.software)}
    may = forced | {v for v in free if _has(e.device, v) and said.get(v) is not False}
    for variant in sorted(may):
        try:
            error = ANSWERS[variant](e)
        except DeviceError as failure:
            if failure.kind != "other":
                raise
            error = float("nan")  # it does not compile
        if error <= LIMIT:  # a NaN is not
            continue
        if variant in forced:
            raise UserError(
                f"{VARIABLE} asks for {variant}, which computes wrongly on {name} (relative error "
                f"{error:.1e}): leave it out, or update the driver"
            )
        may.discard(variant)
    return may, forced
