"""Adapters: those of runs, in their folders, and those imported or combined, in adapters/<id>."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from anytune.studio import jobs
from anytune.studio.datasets import link_or_copy
from anytune.studio.home import IDENTIFIER, Home, Missing, about, name_of, set_about, write
from anytune.train.run_folder import plain, read_json

FILE, FACTS, PROOF = "adapter.gguf", "adapter-facts.json", "proof-adapter.json"


def folder_of(home: Home, identifier: str) -> Path:
    """Where an adapter lies, by the identifier of its run or its own. Raises Missing."""
    if IDENTIFIER.fullmatch(identifier):
        for parent in (home.adapters, home.jobs):
            if (parent / identifier / FILE).is_file():
                return parent / identifier
    raise Missing("There is no such adapter: it may have been deleted.")


def folders(home: Home) -> list[Path]:
    """All that hold an adapter, the newest first."""
    found = [
        path
        for parent in (home.adapters, home.jobs)
        for path in parent.iterdir()
        if IDENTIFIER.fullmatch(path.name) and (path / FILE).is_file()
    ]
    return sorted(found, key=lambda path: path.name, reverse=True)


def known_facts(folder: Path) -> dict[str, Any] | None:
    """Facts of the file as it is now, if they were looked at before."""
    found, status = read_json(folder / FACTS), os.stat(folder / FILE)
    return found["facts"] if found and found.get("stamp") == [status.st_size, status.st_mtime_ns] else None


def keep_facts(folder: Path, facts: dict[str, Any]) -> None:
    status = os.stat(folder / FILE)
    write(folder / FACTS, {"stamp": [status.st_size, status.st_mtime_ns], "facts": facts})


def describe(folder: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """What the pages show: facts, name, lineage, and the proof if it ran on these very bytes."""
    job = jobs.job_of(folder) if (folder / "job.json").is_file() else {}
    spec = job.get("spec", {})
    own = read_json(folder / "origin.json") or {}
    proof = read_json(folder / PROOF)
    proven = proof is not None and proof.get("sha256") == facts["sha256"]
    return {
        "id": folder.name,
        **about(folder),
        "file": file_name(folder),
        "bytes": (folder / FILE).stat().st_size,
        "facts": facts,
        "model": (spec.get("model") or {}).get("name") or own.get("model"),
        "data": {key: (spec.get("data") or {}).get(key) for key in ("id", "name", "version")} if spec else None,
        "run": folder.name if job else None,
        "parent": job.get("parent"),
        "kind": job.get("kind") or own.get("kind"),
        "made_of": own.get("made_of", []),
        "created": job.get("created") or own.get("created", 0.0),
        "start": spec.get("start_from"),
        "proof": {"ok": proof["ok"], "facts": _plain(proof["facts"]), "time": proof["time"]} if proven else None,
    }


def file_name(folder: Path) -> str:
    """How the adapter's file is called where it is downloaded."""
    return f"{plain(about(folder)['name'] or folder.name)}.gguf"


def _plain(facts: dict[str, Any]) -> dict[str, Any]:
    """A proof's facts without this machine's paths."""
    return {key: value for key, value in facts.items() if key not in ("model", "positions")}


def add(home: Home, file: Path, name: str, origin: dict[str, Any]) -> str:
    """Keep a file as an adapter of its own; returns its identifier."""
    with home.new(home.adapters) as made:
        link_or_copy(file, made / FILE)
        write(made / "origin.json", origin | {"created": time.time()})
        set_about(made, name, None)
        return name_of(made)
