"""A training job's work: the specification of job.json given to anytune.train, the run watched at checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from anytune.errors import UserError
from anytune.studio import jobs
from anytune.studio.watching import Watcher

LORA = ("rank", "alpha", "modules", "rslora", "plus_ratio", "dropout")
READING = ("loss", "format", "columns", "overflow")


def run(folder: Path, spec: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """(state, its message and result). Raises UserError for what the user can fix."""
    from anytune.hub.pull import local
    from anytune.model import Lora, load
    from anytune.train.finetune import train
    from anytune.train.settings import TrainSettings

    model_file, data = local(spec["model"]["file"]), Path(spec["data"]["file"])
    if not model_file.is_file():
        raise UserError(
            f"The model {spec['model']['name']} is not where it was: restore it, or start the run again with "
            "another model."
        )
    if not data.is_file():
        raise UserError("The data of this run was deleted: restore it from the bin, or start again with other data.")
    settings = TrainSettings(**spec.get("settings", {}), run_dir=str(folder), resume_from="auto")
    model = load(
        model_file, device=spec.get("device") or "auto", memory=spec.get("memory"), threads=spec.get("threads")
    )
    lora = Lora(**{name: spec["lora"][name] for name in LORA if name in spec.get("lora", {})}, seed=settings.seed)
    watcher = Watcher(model, folder, spec)
    made = train(
        model,
        data,
        lora=lora,
        adapter=spec.get("start"),
        settings=settings,
        quiet=True,
        watch=watcher.at_checkpoint,
        val_split=spec.get("val_split", 0.0),
        **{name: spec["reading"][name] for name in READING if name in spec.get("reading", {})},
    )
    result = {"step": made.step, "total": made.total_steps, "best": made.best}
    if made.stopped == "interrupted":
        asked = jobs.requested(folder)
        return ("cancelled" if asked == "cancel" else "paused"), {"result": result}
    words = "It stopped early because validation no longer improved." if made.stopped == "early" else ""
    return "finished", {"result": result, "message": words}


def total_steps(folder: Path) -> int | None:
    """How many steps the run will have, once it is known."""
    from anytune.train.run_folder import read_json

    total = (read_json(folder / "settings.json") or {}).get("total_steps")
    return total if isinstance(total, int) else None


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a JSONL file that this module's own process wrote; [] if there is none."""
    rows = []
    try:
        for line in path.read_bytes().splitlines(keepends=True):
            if line.endswith(b"\n"):
                rows.append(json.loads(line))
    except (OSError, ValueError):
        pass
    return rows
