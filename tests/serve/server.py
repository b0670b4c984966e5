"""A server as a person starts it: a process of its own, asked by the official client."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx


class Server:
    """`client`: OpenAI's; `http`: a plain one."""

    def __init__(self, folder: Path, *options: str, key: str = "none", **environment: str):
        from tests.support.require import need

        command = [sys.executable, "-m", "anytune", "serve", "--port", "0", "-t", "1", *options]
        self.environment = os.environ | {"HOME": str(folder), "OMP_NUM_THREADS": "1", "ANYTUNE_DEVICE": "numpy"}
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=self.environment | environment, text=True
        )
        line = self.process.stdout.readline()
        assert line.startswith("anytune serve: http"), line + self.process.stderr.read()
        self.url = line.split()[2]
        self.http = httpx.Client(base_url=self.url.removesuffix("/v1"), timeout=60, verify=False)
        self.client = need("openai").OpenAI(
            base_url=self.url, api_key=key, max_retries=0, http_client=httpx.Client(timeout=60, verify=False)
        )

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """(exit code, what it wrote on stderr)."""
        self.http.close()
        self.process.send_signal(number)
        return self.process.wait(30), self.process.stderr.read()

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def ask(self, text: str, model: str = "base", tokens: int = 12, **more) -> str:
        """The likeliest answer to a message."""
        found = self.client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": text}], max_tokens=tokens, temperature=0, **more
        )
        return found.choices[0].message.content

    def post(self, path: str, body: object) -> httpx.Response:
        return self.http.post(path, json=body)
