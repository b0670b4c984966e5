"""The work of jobs that are one command of anytune, run as such, and of fetching a model."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from anytune.errors import UserError
from anytune.studio import adapters, jobs
from anytune.studio.home import Home, write

PROGRESS = "progress.json"


def run(folder: Path, spec: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """(state, its result). Raises UserError with the command's own sentence."""
    if "pull" in spec:
        return _pull(folder, spec["pull"])
    with open(folder / "process.log", "ab") as log:
        before = log.tell()
        done = subprocess.run(
            [sys.executable, "-m", "anytune", *spec["args"]],
            stdout=subprocess.PIPE,
            stderr=log,
            stdin=subprocess.DEVNULL,
            cwd=folder,
            check=False,
        )
    if asked := jobs.requested(folder):
        return ("cancelled" if asked == "cancel" else "paused"), {}
    if done.returncode not in (0, 1) or not done.stdout.strip():
        raise UserError(_last_sentence(folder / "process.log", before) or "The command ended without output.")
    try:
        facts = json.loads(done.stdout)
    except ValueError:
        facts = {"text": done.stdout.decode("utf-8", "replace")[-4000:]}
    result = {"ok": done.returncode == 0, "facts": facts}
    if "proof" in spec:  # where it is to be kept, and of which bytes it holds
        write(
            Path(spec["proof"]["folder"]) / f"proof-{spec['proof']['which']}.json",
            {
                "sha256": spec["proof"]["sha256"],
                "model": (spec.get("model") or {}).get("name"),
                "time": time.time(),
                **result,
            },
        )
    if "keep" in spec and result["ok"]:
        home = Home(Path(spec["home"]))
        result["adapter"] = adapters.add(
            home,
            Path(spec["keep"]),
            spec["name"],
            {"kind": "combined", "model": spec["model"]["name"], "made_of": spec["made_of"]},
        )
        Path(spec["keep"]).unlink(missing_ok=True)
    return "finished", {"result": result}


def _pull(folder: Path, name: str) -> tuple[str, dict[str, Any]]:
    from anytune.hub.pull import pull

    told = [0.0]

    def tell(done: int, total: int | None) -> None:
        if time.monotonic() - told[0] > 0.3:
            told[0] = time.monotonic()
            write(folder / PROGRESS, {"done": done, "total": total})

    path = pull(name, tell)
    return "finished", {"result": {"bytes": path.stat().st_size}}


def _last_sentence(log: Path, before: int) -> str:
    """What a command said last on stderr, without its own name."""
    with log.open("rb") as file:
        file.seek(before)
        lines = [line for line in file.read().decode("utf-8", "replace").splitlines() if line.strip()]
    return lines[-1].removeprefix("anytune: ") if lines else ""
