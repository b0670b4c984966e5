"""How often a wrong token may be tried."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

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
