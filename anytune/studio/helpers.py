"""Calls to helper processes (see helper.py) from the studio's event loop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import AsyncIterator
from typing import Any

from anytune.errors import UserError

LINE = 256 << 20  # bytes of an answer at most


class Helper:
    """One helper process, started at the first call and again when it has gone; one call at a time."""

    def __init__(self) -> None:
        self.process: asyncio.subprocess.Process | None = None
        self.lock = asyncio.Lock()

    async def call(self, name: str, **args: Any) -> Any:
        """The result of a call. Raises UserError with the helper's sentence."""
        async with self.lock:
            async for answer in self._answers(name, args):
                if "result" in answer:
                    return answer["result"]

    async def stream(self, name: str, **args: Any) -> AsyncIterator[Any]:
        """The items of a call as they come; a reader that goes away breaks the call off. Raises UserError."""
        async with self.lock:
            async for answer in self._answers(name, args):
                if "item" in answer:
                    yield answer["item"]

    async def _answers(self, name: str, args: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        process = await self._start()
        assert process.stdin and process.stdout
        process.stdin.write(json.dumps({"call": name, "args": args}).encode() + b"\n")
        await process.stdin.drain()
        ended = False
        try:
            while line := await process.stdout.readline():
                answer = json.loads(line)
                ended = "item" not in answer
                if "error" in answer:
                    raise UserError(answer["error"])
                yield answer
                if ended:
                    return
            self.process = None
            code = await process.wait()
            raise UserError(
                "Not enough memory: choose a smaller model."
                if code == -signal.SIGKILL
                else "The helper process ended; try again."
            )
        finally:
            if not ended and process.returncode is None:
                await self._break_off(process)

    async def _break_off(self, process: asyncio.subprocess.Process) -> None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGINT)
            try:
                async with asyncio.timeout(5):
                    while line := await process.stdout.readline():
                        if "item" not in json.loads(line):
                            return
            except (TimeoutError, asyncio.CancelledError):
                process.kill()
                self.process = None

    async def _start(self) -> asyncio.subprocess.Process:
        if self.process is None or self.process.returncode is not None:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "anytune.studio.helper",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=LINE,
                start_new_session=True,
            )
        return self.process

    async def close(self) -> None:
        if self.process is not None and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
            await self.process.wait()
