"""A job: a folder in which a process of its own works, whoever watches.

    job.json     what is to be done; never changes        state.json   its state
    about.json   name and note                            request      pause or cancel, for the process
    .held        locked as long as the process lives      process.log  what it said
A training job's folder is its run's folder too (settings.json, metrics.jsonl, checkpoints, …).
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from anytune.locks import is_locked
from anytune.studio.home import Conflict, Home, name_of, set_about, write
from anytune.train.run_folder import read_json

OPEN = ("queued", "running")  # states that a scheduler has to look at
AGAIN = ("paused", "crashed", "failed", "cancelled")  # states from which a job may be queued again
LANES = {"train": "train", "adapt": "train", "pull": "pull"}  # others: "work"
BALLAST = 64 << 10  # bytes kept back for the last words on a full disk


def create(home: Home, kind: str, spec: dict[str, Any], name: str, parent: str | None = None) -> Path:
    """A new job's folder, queued."""
    with prepare(home, kind, spec, name, parent) as made:
        pass
    return home.jobs / name_of(made)


@contextlib.contextmanager
def prepare(home: Home, kind: str, spec: dict[str, Any], name: str, parent: str | None = None) -> Iterator[Path]:
    """The same for a specification that is completed within the block, once the folder's name is known."""
    with home.new(home.jobs) as made:
        yield made
        write(
            made / "job.json",
            {"id": name_of(made), "kind": kind, "created": time.time(), "parent": parent, "spec": spec},
        )
        set_about(made, name, None)
        set_state(made, "queued", queued=time.time())


def job_of(folder: Path) -> dict[str, Any]:
    """job.json; an empty job's fields where it cannot be read."""
    found = read_json(folder / "job.json") or {}
    spec = found.get("spec")
    return {
        "id": folder.name,
        "kind": str(found.get("kind", "unknown")),
        "parent": found.get("parent"),
        "created": found.get("created", 0.0),
        "spec": spec if isinstance(spec, dict) else {},
    }


def lane(kind: str) -> str:
    """Jobs of one lane go one after another."""
    return LANES.get(kind, "work")


def set_state(folder: Path, state: str, **more: Any) -> None:
    """state: queued, running, paused, finished, failed, cancelled or crashed; more: message, result, …"""
    write(folder / "state.json", {"state": state, "since": time.time(), **more})


def state_of(folder: Path) -> dict[str, Any]:
    """state.json, with "crashed" for a job whose process has gone without a word."""
    found = read_json(folder / "state.json") or {
        "state": "crashed",
        "since": 0.0,
        "message": "The job's state was lost.",
    }
    if found.get("state") == "running" and not alive(folder):
        found = read_json(folder / "state.json") or found  # it may have ended between the two looks
        if found.get("state") == "running":
            found = found | {
                "state": "crashed",
                "message": "The process ended unexpectedly: the machine was switched off, or ran out of memory. "
                "The run can be resumed from its last checkpoint.",
            }
    return found


@contextlib.contextmanager
def held(folder: Path) -> Iterator[bool]:
    """Hold a job for this process; False: another one holds it."""
    import fcntl

    handle = os.open(folder / ".held", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        for _ in range(50):  # a look (see alive) takes a moment
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.02)
        else:
            yield False
            return
        yield True
    finally:
        os.close(handle)


def alive(folder: Path) -> bool:
    """Whether a process works at the job. The system lets go of its lock however it ends."""
    return is_locked(folder / ".held")


def request(folder: Path, what: str) -> None:
    """Ask a job to pause or cancel; a second request to cancel ends its process at once. Raises Conflict."""
    state = state_of(folder)
    if state["state"] == "queued" and not alive(folder):
        set_state(folder, "cancelled" if what == "cancel" else "paused", message="It had not started.")
        return
    if what == "cancel" and state["state"] in ("paused", "crashed", "failed"):
        set_state(folder, "cancelled", message=state.get("message", ""))
        return
    if state["state"] not in OPEN:
        raise Conflict(f"This job is {state['state']}: it cannot be {'paused' if what == 'pause' else 'cancelled'}.")
    asked = folder / "request"
    again = what == "cancel" and asked.is_file() and asked.read_text("utf-8") == "cancel"
    asked.write_text(what, "utf-8")
    with contextlib.suppress(ProcessLookupError, PermissionError, KeyError):  # it has just begun, or just ended
        os.killpg(state["pid"], signal.SIGKILL if again else signal.SIGTERM)
        if again:
            set_state(folder, "cancelled", message="It was ended immediately.")


def requested(folder: Path) -> str | None:
    """What was asked of the job since it began: "pause", "cancel" or None."""
    with contextlib.suppress(OSError):
        return (folder / "request").read_text("utf-8")
    return None


def queue_again(folder: Path) -> None:
    """Let a job go on that was paused, has failed or crashed. Raises Conflict."""
    state = state_of(folder)["state"]
    if state not in AGAIN:
        raise Conflict(f"This job is {state}: there is nothing to resume.")
    (folder / "request").unlink(missing_ok=True)
    set_state(folder, "queued", queued=time.time(), again=True)
