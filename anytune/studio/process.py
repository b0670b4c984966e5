"""The process of a job: python -m anytune.studio.process FOLDER. It outlives whoever started it."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

from anytune.errors import UserError
from anytune.studio import jobs

STOPPED = {"pause": "paused", "cancel": "cancelled"}  # what was asked -> the state that it leads to


def start(folder: Path) -> Any:
    """Start the process of a queued job, in a session of its own; returns its Popen."""
    import subprocess

    with open(folder / "process.log", "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "anytune.studio.process", str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd=folder,
        )


def main(folder: Path) -> int:
    with jobs.held(folder) as mine:
        if not mine or jobs.state_of(folder)["state"] not in ("queued", "crashed"):
            return 0  # another process works at it, or it was cancelled meanwhile
        jobs.set_state(folder, "running", pid=os.getpid())
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # before training takes it over, and after
        ballast = folder / ".ballast"
        ballast.write_bytes(bytes(jobs.BALLAST))
        try:
            asked = jobs.requested(folder)  # in the moment between
            state, more = (STOPPED[asked], {}) if asked in STOPPED else _work(folder)
        finally:
            ballast.unlink(missing_ok=True)
        jobs.set_state(folder, state, **more)
        return 0


def _work(folder: Path) -> tuple[str, dict[str, Any]]:
    """(state, what belongs to it) of the work's end."""
    job = jobs.job_of(folder)
    try:
        if job["kind"] == "train":
            from anytune.studio.training import run
        else:
            from anytune.studio.work import run
        return run(folder, job["spec"])
    except UserError as error:
        return "failed", {"message": " ".join(str(error).split())}
    except KeyboardInterrupt:
        return STOPPED.get(jobs.requested(folder) or "", "paused"), {}
    except MemoryError:
        return "failed", {
            "message": "The machine ran out of memory: choose a smaller micro-batch (-ub), a shorter "
            "context (-c) or a memory limit."
        }
    except Exception as error:
        traceback.print_exc()
        return "failed", {
            "message": f"Internal error ({type(error).__name__}: {error:.300}); the job's log has the details."
            if not isinstance(error, OSError)
            else f"Cannot write to the disk: {error.strerror or error}. Free some space, then resume the job."
        }


if __name__ == "__main__":
    with contextlib.suppress(AttributeError):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a closed terminal is no reason to stop
    sys.exit(main(Path(sys.argv[1])))
