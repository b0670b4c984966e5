"""What the studio's process holds while it runs."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from anytune.errors import UserError
from anytune.studio.follow import Follower, News
from anytune.studio.helpers import Helper
from anytune.studio.home import Home, Missing
from anytune.studio.index import Index
from anytune.studio.scheduler import Scheduler
from anytune.studio.uploads import Uploads


class Studio:
    """reader: reads data and estimates; talker: holds a model for comparisons; further: places for exports."""

    def __init__(self, home: Home, device: str = "auto", further: Iterable[Path] = ()):
        self.home, self.device, self.further = home, device, tuple(further)
        self.held = _hold(home)
        home.sweep()
        self.follower, self.news = Follower(home.jobs), News()
        self.index, self.uploads = Index(home, self.news.tell), Uploads(home)
        self.reader, self.talker = Helper(), Helper()
        self.scheduler = Scheduler(home, self.index)
        self.models: dict[str, dict[str, Any]] = {}

    async def start(self) -> None:
        self.news.loop = asyncio.get_running_loop()
        self.scheduler.start()

    async def stop(self) -> None:
        await asyncio.to_thread(self.scheduler.stop)
        await self.reader.close()
        await self.talker.close()
        self.index.close()
        os.close(self.held)

    async def find_models(self) -> list[dict[str, Any]]:
        """Every model on this machine, by the helper; kept, so that names can be resolved."""
        rows = await self.reader.call("models")
        self.models = {key_of(row): row for row in rows}
        return rows

    async def model_file(self, name: str) -> str:
        """The file of a model of the list. Raises Missing."""
        if name not in self.models or not Path(self.models[name]["path"]).is_file():
            await self.find_models()
        if name not in self.models:
            raise Missing(f"There is no model {name[:200]} on this machine (any more).")
        return self.models[name]["path"]

    def changed(self, identifier: str) -> dict[str, Any] | None:
        """Read a job's folder again and tell everyone."""
        row = self.index.refresh(identifier)
        self.scheduler.wake.set()
        return row


def key_of(row: dict[str, Any]) -> str:
    """By what the API names a model of the list: its own name, or a hash in place of a path."""
    name = row["name"]
    if not Path(name).is_absolute():
        return name
    return f"file:{hashlib.sha256(name.encode()).hexdigest()[:12]}:{Path(name).name}"


def short(name: str) -> str:
    """A model's name for a title: "file:…:qwen3.gguf" -> "qwen3", "hf:owner/repo:file.gguf" -> "file"."""
    last = name.rsplit("/", 1)[-1]
    return last.rsplit(":", 1)[-1].removesuffix(".gguf") if last.endswith(".gguf") else last.removeprefix("ollama:")


def _hold(home: Home) -> int:
    """Be the only studio of this folder. Raises UserError."""
    handle = os.open(home.root / ".studio", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise UserError(f"Another studio works in {home.root}: use that one, or name another with --home.") from None
    return handle
