"""How fast a run goes, and how long it will still take."""

from __future__ import annotations


class Throughput:
    """total: tokens of the whole run; seen: of them so far; rate: tokens/s lately, None before the first step."""

    def __init__(self, total: int):
        self.total, self.seen, self.rate = total, 0, None

    def step(self, tokens: int, seconds: float) -> bool:
        """Take in a step -> whether it was the first."""
        self.seen += tokens
        first, rate = self.rate is None, tokens / max(seconds, 1e-9)
        self.rate = rate if first else 0.9 * self.rate + 0.1 * rate
        return first

    @property
    def left(self) -> float | None:
        """Seconds to the end, about; None before the first step."""
        return max(0, self.total - self.seen) / self.rate if self.rate else None
