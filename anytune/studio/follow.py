"""Following a run while it grows: one reader of its files for all who watch it, and the job list's changes for all."""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from anytune.studio.series import Series
from anytune.studio.watching import FILE as WATCHED

EVERY = 0.25  # seconds between two looks at a file
ALIVE = 15.0  # seconds after which a comment keeps an idle connection open
KEPT = 6  # runs whose points stay in memory when nobody watches them
PIECE = 2000  # points of one message


def message(event: str, data: Any, identifier: int | None = None) -> bytes:
    """One server-sent event."""
    head = f"id: {identifier}\n" if identifier is not None else ""
    return f"{head}event: {event}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n".encode("utf-8", "replace")


class Tail:
    """What was appended to a file of lines since the last look."""

    def __init__(self, path: Path):
        self.path, self.at = path, 0

    def lines(self) -> list[str]:
        try:
            with open(self.path, "rb") as file:
                if file.seek(0, 2) < self.at:
                    self.at = 0
                file.seek(self.at)
                piece = file.read(1 << 20)
        except OSError:
            return []
        whole = piece.rfind(b"\n") + 1
        self.at += whole
        return piece[:whole].decode("utf-8", "replace").splitlines()


class Followed:
    """One run. `turn` grows whenever something new is there; `back`: the steps that it went back to."""

    def __init__(self, folder: Path):
        self.series = Series(folder / "metrics.jsonl")
        self.log, self.watched = Tail(folder / "train.log"), Tail(folder / WATCHED)
        self.log_lines: list[str] = []
        self.looks: list[Any] = []
        self.back: list[int] = []
        self.readers, self.turn, self.changed = 0, 0, asyncio.Condition()
        self.lock, self.task = asyncio.Lock(), None

    async def look(self) -> bool:
        """Take in what is new; says whether anything was."""
        async with self.lock:
            before = (len(self.series), self.series.end)
            back = await asyncio.to_thread(self.series.follow)
            if back is not None:
                self.back.append(back)
            log, watched = self.log.lines(), self.watched.lines()
            self.log_lines += log
            self.looks += [json.loads(line) for line in watched]
            return bool(log or watched or back is not None or before != (len(self.series), self.series.end))

    async def _keep_looking(self) -> None:
        while self.readers:
            if await self.look():
                async with self.changed:
                    self.turn += 1
                    self.changed.notify_all()
            await asyncio.sleep(EVERY)

    async def events(self, after: int) -> AsyncIterator[bytes]:
        """Points after step `after`, lines of the log, looks at checkpoints: first what is there, then what comes."""
        self.readers += 1
        try:
            if self.task is None or self.task.done():
                self.task = asyncio.create_task(self._keep_looking())
            await self.look()
            log = looks = 0
            back = len(self.back)
            if after > self.series.step:
                after = self.series.step
                yield message("back", after)
            while True:
                turn = self.turn
                for step in self.back[back:]:
                    after = min(after, step)
                    yield message("back", after)
                back = len(self.back)
                while rows := self.series.after(after)[:PIECE]:
                    after = int(rows[-1][0] or 0)
                    yield message("points", rows, after)
                if self.log_lines[log:]:
                    yield message("log", self.log_lines[max(log, len(self.log_lines) - 2000) :])
                    log = len(self.log_lines)
                for look in self.looks[looks:]:
                    yield message("look", look)
                looks = len(self.looks)
                try:
                    async with asyncio.timeout(ALIVE), self.changed:
                        await self.changed.wait_for(lambda seen=turn: self.turn != seen)
                except TimeoutError:
                    yield b": still here\n\n"
        finally:
            self.readers -= 1


class Follower:
    """Followed runs by identifier; the last few stay, so that a page that is opened again is quick."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.runs: OrderedDict[str, Followed] = OrderedDict()

    def __getitem__(self, identifier: str) -> Followed:
        run = self.runs.pop(identifier, None) or Followed(self.folder / identifier)
        self.runs[identifier] = run
        for name in [name for name, kept in self.runs.items() if not kept.readers][:-KEPT]:
            del self.runs[name]
        return run


class News:
    """Changes of the job list, for all pages that are open. tell() may be called from any thread."""

    def __init__(self) -> None:
        self.queues: set[asyncio.Queue[dict[str, Any]]] = set()
        self.loop: asyncio.AbstractEventLoop | None = None

    def tell(self, row: dict[str, Any]) -> None:
        if self.loop is not None and not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self._put, row)

    def _put(self, row: dict[str, Any]) -> None:
        for queue in self.queues:
            if queue.qsize() < 1000:  # a page that sleeps asks for the whole list when it wakes
                queue.put_nowait(row)

    async def events(self) -> AsyncIterator[bytes]:
        queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.queues.add(queue)
        try:
            yield message("hello", {})
            while True:
                try:
                    async with asyncio.timeout(ALIVE):
                        row = await queue.get()
                    yield message("job", row)
                except TimeoutError:
                    yield b": still here\n\n"
        finally:
            self.queues.discard(queue)
