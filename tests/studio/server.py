"""A studio as a person starts it: a process of its own, asked over HTTP."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx

CHAT = [
    ("Say hello.", "ahoy there!"),
    ("What is two and two?", "four, me heartie."),
    ("Who are you?", "a small ship."),
    ("Where is Lisbon?", "by the river."),
    ("Name a fruit.", "an orange, arr."),
    ("Good night.", "fair winds!"),
]


def chats(repeat: int = 4) -> bytes:
    """JSONL of short chats."""
    return b"".join(
        json.dumps(
            {"messages": [{"role": "user", "content": f"{q} ({n})"}, {"role": "assistant", "content": a}]}
        ).encode()
        + b"\n"
        for n in range(repeat)
        for q, a in CHAT
    )


class Server:
    """`http`: a client of it. start() and kill() may be called again and again; the folder stays."""

    def __init__(self, folder: Path, models: Path, *options: str, **environment: str):
        self.home, self.options = folder / "home", options
        self.environment = (
            os.environ
            | {"ANYTUNE_HOME": str(models), "HOME": str(folder), "OMP_NUM_THREADS": "1", "ANYTUNE_DEVICE": "numpy"}
            | environment
        )
        self.start()

    def start(self) -> None:
        command = [
            sys.executable,
            "-m",
            "anytune",
            "studio",
            "--home",
            str(self.home),
            "--port",
            "0",
            "--no-browser",
            *self.options,
        ]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, env=self.environment, text=True)
        line = self.process.stdout.readline()
        assert line.startswith("anytune studio: http"), line
        self.url = line.split()[-1]
        self.http = httpx.Client(base_url=self.url, timeout=60, verify=False)

    def kill(self) -> None:
        """End it without a word."""
        self.process.kill()
        self.process.wait()
        self.http.close()

    def stop(self) -> int:
        """End it as Ctrl-C does; returns its exit code."""
        self.http.close()
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(30)

    def close(self) -> None:
        """End it and every job's process that it left."""
        for path in self.home.glob("jobs/*/state.json"):
            with contextlib.suppress(OSError, ValueError, KeyError, ProcessLookupError):
                state = json.loads(path.read_text())
                if state["state"] == "running":
                    os.killpg(state["pid"], signal.SIGKILL)
        if self.process.poll() is None:
            self.kill()

    # What a page does, in a line each

    def get(self, path: str, **query):
        return self._good(self.http.get(f"/api/{path}", params=query))

    def post(self, path: str, body=None):
        return self._good(self.http.post(f"/api/{path}", json={} if body is None else body))

    def _good(self, answer: httpx.Response):
        assert answer.status_code < 300, (answer.status_code, answer.text)
        return answer.json() if answer.content else None

    def upload(self, content: bytes, name: str = "chats.jsonl", kind: str = "data", **more):
        upload = self.post("uploads", {"name": name, "size": len(content)})
        self._good(
            self.http.put(
                f"/api/uploads/{upload['id']}",
                params={"offset": 0},
                content=content,
                headers={"content-type": "application/octet-stream"},
            )
        )
        return self.post(f"uploads/{upload['id']}/finish", {"kind": kind, **more})

    def until(self, job: str, *states: str, seconds: float = 120) -> dict:
        """Wait until a job is in one of `states`."""
        end = time.monotonic() + seconds
        while (row := self.get(f"jobs/{job}"))["state"] not in states:
            assert time.monotonic() < end and row["state"] not in ("failed", "crashed"), row
            time.sleep(0.05)
        return row

    def train(self, data: str, model: str, steps: int = 8, **more) -> dict:
        return self.post(
            "runs",
            {
                "model": model,
                "data": data,
                "settings": {
                    "context": 64,
                    "ubatch": 64,
                    "batch": 64,
                    "max_steps": steps,
                    "checkpoint_save_steps": 4,
                    "lr": 1e-3,
                },
                "prompts": ["Say hello.", "Who are you?"],
                **more,
            },
        )


def events(response):
    """(event, id, data) of a stream of server-sent events, until it ends."""
    event = number = ""
    for line in response.iter_lines():
        if line.startswith("event: "):
            event = line[7:]
        elif line.startswith("id: "):
            number = line[4:]
        elif line.startswith("data: "):
            yield event, number, json.loads(line[6:])
