"""How often a wrong token may be tried, and how long a request may be."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

TRIES, SECONDS = 10, 60.0
CLIENTS = 1000


class Attempts:
    """Wrong tokens of the last minute, by client."""

    def __init__(self, now: Callable[[], float] = time.monotonic):
        self.now = now
        self.times: dict[str, deque[float]] = {}

    def blocked(self, client: str) -> bool:
        return len(self._recent(client)) >= TRIES

    def failed(self, client: str) -> None:
        self._recent(client).append(self.now())

    def _recent(self, client: str) -> deque[float]:
        if client not in self.times and len(self.times) >= CLIENTS:
            self.times.pop(next(iter(self.times)))
        times = self.times.setdefault(client, deque(maxlen=TRIES))
        while times and times[0] < self.now() - SECONDS:
            times.popleft()
        return times


def limited(app: Callable, most: int, streamed: tuple[str, ...] = ()) -> Callable:
    """`app`, whose requests may have `most` bytes. streamed: methods that it limits itself."""

    async def guarded(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] in streamed:
            return await app(scope, receive, send)
        left = most

        async def counted() -> dict[str, Any]:
            nonlocal left
            part = await receive()
            left -= len(part.get("body", b""))
            if left < 0:
                from starlette.exceptions import HTTPException

                raise HTTPException(413, "This request is too large.")
            return part

        await app(scope, counted, send)

    return guarded
