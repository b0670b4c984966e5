"""A studio killed (-9) at random moments while it is used: python -m tests.studio.kill_harness [KILLS].

Uploads arrive in pieces, notes are written, data is edited, runs are queued, paused and resumed, until the studio is
gone; what it had acknowledged must be there when it is back, and at the end every run has every point, once.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx

from tests.studio.server import Server, chats
from tests.support import tiny

RAW = {"content-type": "application/octet-stream"}


class User:
    """Uses a studio until it breaks; remembers what was acknowledged."""

    def __init__(self, server: Server, seed: int):
        self.server, self.random = server, random.Random(seed)
        self.uploads: dict[str, tuple[bytes, int]] = {}  # id -> (content, bytes acknowledged)
        self.data: dict[str, int] = {}  # id -> newest version acknowledged
        self.runs: set[str] = set()
        self.notes: dict[str, set[str]] = {}  # id -> notes that it may have now
        self.acknowledged = 0

    def use(self) -> None:
        """One thing after another, until the studio does not answer."""
        try:
            while True:
                self.random.choice([self.upload, self.upload, self.note, self.edit, self.run, self.pause])()
                self.acknowledged += 1
        except (httpx.HTTPError, OSError, ValueError):
            pass

    def upload(self) -> None:
        server = self.server
        if not self.uploads or self.random.random() < 0.3:
            content = chats(self.random.randint(1, 3))
            made = server.post("uploads", {"name": "x.jsonl", "size": len(content)})
            self.uploads[made["id"]] = (content, 0)
            return
        identifier, (content, done) = self.random.choice(list(self.uploads.items()))
        if done < len(content):
            piece = content[done : done + self.random.randint(1, 400)]
            answer = server.http.put(f"/api/uploads/{identifier}", params={"offset": done}, content=piece, headers=RAW)
            if answer.status_code == 409:  # the last piece was written, and the studio killed before it said so
                received = server.get(f"uploads/{identifier}")["received"]
                assert received > done, (received, done)
                self.uploads[identifier] = (content, received)
            elif answer.status_code == 200:
                self.uploads[identifier] = (content, answer.json()["received"])
            return
        answer = server.http.post(f"/api/uploads/{identifier}/finish", json={})
        if answer.status_code == 404:  # finished before the kill, and not acknowledged
            del self.uploads[identifier]
        elif answer.status_code < 300:
            self.data[answer.json()["id"]] = 1
            del self.uploads[identifier]

    def note(self) -> None:
        if self.runs:
            identifier, text = self.random.choice(sorted(self.runs)), f"note {self.random.random()}"
            self.notes.setdefault(identifier, {""}).add(text)
            if self.server.http.patch(f"/api/jobs/{identifier}", json={"note": text}).status_code < 300:
                self.notes[identifier] = {text}

    def edit(self) -> None:
        if self.data:
            identifier, version = self.random.choice(list(self.data.items()))
            line = chats(1).splitlines()[0].decode()
            answer = self.server.http.post(
                f"/api/data/{identifier}/edit", json={"version": version, "changes": {"1": line}}
            )
            if answer.status_code < 300:
                self.data[identifier] = answer.json()["versions"][-1]["number"]

    def run(self) -> None:
        if self.data and len(self.runs) < 4:
            model = self.server.get("models")["models"][0]["name"]
            answer = self.server.http.post(
                "/api/runs",
                json={
                    "model": model,
                    "data": self.random.choice(list(self.data)),
                    "settings": {"context": 64, "ubatch": 64, "batch": 64, "max_steps": 60, "checkpoint_save_steps": 7},
                },
            )
            if answer.status_code < 300:
                self.runs.add(answer.json()["id"])

    def pause(self) -> None:
        if self.runs and self.random.random() < 0.3:
            identifier = self.random.choice(sorted(self.runs))
            action = "pause" if self.server.get(f"jobs/{identifier}")["state"] == "running" else "resume"
            self.server.http.post(f"/api/jobs/{identifier}/{action}", json={})

    def check(self) -> None:
        """All that was acknowledged is there."""
        server = self.server
        for identifier, (content, done) in self.uploads.items():
            answer = server.http.get(f"/api/uploads/{identifier}")
            assert answer.status_code == 404 and done == len(content) or answer.json()["received"] >= done, identifier
        there = {one["id"]: one for one in server.get("data")}
        for identifier, version in self.data.items():
            assert there[identifier]["versions"][-1]["number"] >= version, identifier
        jobs = {one["id"]: one for one in server.get("jobs")}
        for identifier in self.runs:
            assert identifier in jobs, identifier
            assert jobs[identifier]["note"] in self.notes.get(identifier, {""}), (identifier, jobs[identifier]["note"])


def harness(folder: Path, kills: int, seed: int = 0) -> dict:
    """Kill a studio `kills` times; returns what was done. Raises AssertionError if something was lost."""
    models = folder / "models"
    models.mkdir()
    tiny.write(models / "tiny.gguf", "qwen3")
    server = Server(folder, models)
    user, moments = User(server, seed), random.Random(seed + 1)
    try:
        for number in range(kills):
            if moments.random() < 0.2:
                (server.home / "studio.sqlite").write_bytes(b"damaged" * 100)  # it is made again from the folders
            thread = threading.Thread(target=user.use)
            thread.start()
            time.sleep(moments.uniform(0.05, 1.5))
            server.process.kill()
            server.process.wait()
            thread.join()
            server.http.close()
            server.start()
            user.check()
            print(
                f"kill {number + 1}: {user.acknowledged} answers, {len(user.data)} data sets, {len(user.runs)} runs",
                file=sys.stderr,
            )
        for identifier in sorted(user.runs):
            if server.get(f"jobs/{identifier}")["state"] in ("paused", "crashed"):
                server.post(f"jobs/{identifier}/resume")
            server.until(identifier, "finished", seconds=300)
            rows = (server.home / "jobs" / identifier / "metrics.jsonl").read_text().splitlines()
            assert [json.loads(row)["step"] for row in rows] == list(range(1, 61)), identifier
        return {"kills": kills, "acknowledged": user.acknowledged, "data": len(user.data), "runs": len(user.runs)}
    finally:
        server.close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        print(json.dumps(harness(Path(name), int(sys.argv[1]) if len(sys.argv) > 1 else 60)))
