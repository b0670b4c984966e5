"""torchrun's environment variables, which anytune train --gpus sets too: which process of how many this one is."""

from __future__ import annotations

import os

from anytune.errors import UserError

TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def torchrun_variables() -> dict[str, str]:
    """torchrun's variables if this process is one of several, else {}. Raises UserError if some are missing."""
    found = {name: os.environ[name] for name in TORCHRUN if os.environ.get(name)}
    if "RANK" not in found or found.get("WORLD_SIZE", "1") == "1":
        return {}
    missing = [name for name in TORCHRUN if name not in found]
    if missing:
        raise UserError(
            f"RANK is set and {missing[0]} is not: start several processes with torchrun, which sets all "
            f"of {', '.join(TORCHRUN)}, or unset RANK."
        )
    wrong = [name for name in TORCHRUN if name != "MASTER_ADDR" and not found[name].isdigit()]
    wrong += ["MASTER_PORT"] if found["MASTER_PORT"] == "0" else []
    if wrong or int(found["RANK"]) >= int(found["WORLD_SIZE"]):
        name = wrong[0] if wrong else "RANK"
        raise UserError(f"{name}={found[name]} is not a valid process number: start several with torchrun.")
    return found


def local_device(device: str) -> str:
    """The device that a rank takes when all are told `device`: cuda means cuda:LOCAL_RANK."""
    found = torchrun_variables()
    if not found:
        return device
    if device == "auto":
        from anytune.engine.devices import choose

        device = choose()
    return f"{device}:{found['LOCAL_RANK']}" if device in ("cuda", "rocm", "xpu") else device
