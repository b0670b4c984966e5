"""The list of jobs in a small SQLite file: what the pages list, without reading a thousand folders each time.

Nothing is here alone: a lost or damaged file is made again from the folders.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from anytune.studio import jobs
from anytune.studio.home import IDENTIFIER, Home, about
from anytune.studio.series import last_row

TABLE = (
    "CREATE TABLE IF NOT EXISTS jobs (id TEXT PRIMARY KEY, kind TEXT, created REAL, state TEXT, queued REAL, row TEXT)"
)


class Index:
    """Rows by identifier; refresh() after a folder has changed. changed(row): whoever notices a change first, all are
    told; called in any thread."""

    def __init__(self, home: Home, changed: Callable[[dict[str, Any]], None] = lambda row: None):
        self.changed = changed
        self.home, self.path, self.lock = home, home.root / "studio.sqlite", threading.RLock()
        try:
            self.database = self._open()
            self.rebuild()
        except sqlite3.DatabaseError:
            for name in (self.path, *self.path.parent.glob(self.path.name + "-*")):
                Path(name).unlink(missing_ok=True)
            self.database = self._open()
            self.rebuild()

    def _open(self) -> sqlite3.Connection:
        made = sqlite3.connect(self.path, check_same_thread=False, isolation_level=None)
        made.execute("PRAGMA journal_mode = WAL")
        made.execute("PRAGMA synchronous = NORMAL")
        made.execute(TABLE)
        return made

    def rebuild(self) -> None:
        """Make the rows those of the folders. Jobs that had ended are not read again."""
        with self.lock:
            ended = {
                identifier
                for identifier, state in self.database.execute("SELECT id, state FROM jobs")
                if state not in jobs.OPEN
            }
            there = {path.name for path in self.home.jobs.iterdir() if IDENTIFIER.fullmatch(path.name)}
            self.database.execute("BEGIN")
            known = {identifier for (identifier,) in self.database.execute("SELECT id FROM jobs")}
            for identifier in known - there:
                self.database.execute("DELETE FROM jobs WHERE id = ?", (identifier,))
            for identifier in there - ended:
                self._put(identifier)
            self.database.execute("COMMIT")

    def refresh(self, identifier: str) -> dict[str, Any] | None:
        """Read one folder again; returns its row, None if it is gone."""
        with self.lock:
            if not (self.home.jobs / identifier).is_dir():
                self.database.execute("DELETE FROM jobs WHERE id = ?", (identifier,))
                return None
            return self._put(identifier)

    def _put(self, identifier: str) -> dict[str, Any]:
        row = summary(self.home.jobs / identifier)
        before = self.database.execute("SELECT row FROM jobs WHERE id = ?", (identifier,)).fetchone()
        self.database.execute(
            "INSERT OR REPLACE INTO jobs VALUES (?, ?, ?, ?, ?, ?)",
            (identifier, row["kind"], row["created"], row["state"], row.get("queued"), json.dumps(row)),
        )
        if before is None or json.loads(before[0]) != row:
            self.changed(row)
        return row

    def rows(self, kind: str | None = None, limit: int = 2000) -> list[dict[str, Any]]:
        """Rows, the newest first."""
        where = "" if kind is None else "WHERE kind = ?"
        with self.lock:
            found = self.database.execute(
                f"SELECT row FROM jobs {where} ORDER BY created DESC LIMIT ?",
                (*(() if kind is None else (kind,)), limit),
            ).fetchall()
        return [json.loads(row) for (row,) in found]

    def open(self) -> list[dict[str, Any]]:
        """Jobs that are queued or running, in the order of the queue."""
        with self.lock:
            found = self.database.execute(
                "SELECT row FROM jobs WHERE state IN ('queued', 'running') ORDER BY queued, created"
            ).fetchall()
        return [json.loads(row) for (row,) in found]

    def close(self) -> None:
        self.database.close()


def summary(folder: Path) -> dict[str, Any]:
    """What lists show of a job. Never a path of this machine."""
    job, state = jobs.job_of(folder), jobs.state_of(folder)
    row = {key: job[key] for key in ("id", "kind", "created", "parent")} | about(folder)
    row |= {
        "state": state["state"],
        "since": state.get("since"),
        "message": state.get("message", ""),
        "queued": state.get("queued"),
        "result": state.get("result"),
    }
    spec = job["spec"]
    row["model"] = (spec.get("model") or {}).get("name")
    row["data"] = {key: (spec.get("data") or {}).get(key) for key in ("id", "version", "name")}
    if job["kind"] == "train":
        from anytune.studio.training import total_steps

        last = last_row(folder / "metrics.jsonl")
        row |= {
            "step": last.get("step", 0),
            "loss": last.get("loss"),
            "total": total_steps(folder),
            "adapter": (folder / "adapter.gguf").is_file(),
        }
    return row
