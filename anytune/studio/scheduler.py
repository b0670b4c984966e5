"""Starts what is queued, one job of each lane at a time, and notices when jobs end. A thread of the studio."""

from __future__ import annotations

import logging
import threading

from anytune.studio import jobs
from anytune.studio.home import Home
from anytune.studio.index import Index
from anytune.studio.process import start

EVERY = 0.5  # seconds between two looks
log = logging.getLogger("anytune.studio")


class Scheduler:
    """Changes are announced by the index."""

    def __init__(self, home: Home, index: Index):
        self.home, self.index = home, index
        self.started: dict[str, object] = {}  # identifier -> Popen of what this studio started
        self.wake, self.ended = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self._run, name="scheduler", daemon=True)

    def start(self) -> None:
        self.thread.start()

    def stop(self) -> None:
        """End the thread; the jobs' processes go on."""
        self.ended.set()
        self.wake.set()
        self.thread.join(5)

    def _run(self) -> None:
        while not self.ended.is_set():
            try:
                self.look()
            except Exception:  # a full disk, a folder that is gone: the next look may go well
                log.exception("the scheduler failed")
            self.wake.wait(EVERY)
            self.wake.clear()

    def look(self) -> None:
        """One look at all open jobs."""
        for process in list(self.started.values()):
            process.poll()  # reaped, so that no zombie stays
        busy = set()
        for row in self.index.open():
            folder, lane = self.home.jobs / row["id"], jobs.lane(row["kind"])
            now = self.index.refresh(row["id"])
            if now is not None and now["state"] == "queued" and lane not in busy and not jobs.alive(folder):
                child = self.started.get(row["id"])
                if child is not None and child.poll():
                    jobs.set_state(folder, "failed", message="The process could not start; see its log.")
                    self.started.pop(row["id"])
                    now = self.index.refresh(row["id"])
                elif child is None or child.poll() is not None:
                    self.started[row["id"]] = start(folder)
            if now is not None and now["state"] in jobs.OPEN:
                busy.add(lane)
            elif now is not None and now["state"] == "crashed":
                self._tell_why(row["id"])
                self.index.refresh(row["id"])

    def _tell_why(self, identifier: str) -> None:
        """Write down that a job's process has gone, with what its exit code says."""
        folder, child = self.home.jobs / identifier, self.started.pop(identifier, None)
        message = jobs.state_of(folder).get("message", "")
        if child is not None and child.poll() == -9:
            message = (
                "The process was killed, most likely because memory ran out: choose a smaller micro-batch (-ub), a "
                "shorter context (-c) or a memory limit. The run can be resumed from its last checkpoint."
            )
        jobs.set_state(folder, "crashed", message=message)
