"""How evenly routers spread tokens over experts, over the layers and micro-batches of a step."""

from __future__ import annotations


class Loads:
    """Means since they were last taken. peak: the fullest expert's tokens over the mean; idle: experts without any."""

    def __init__(self) -> None:
        self.count, self.peak, self.idle = 0, 0.0, 0.0

    def add(self, peak: float, idle: float) -> None:
        self.count, self.peak, self.idle = self.count + 1, self.peak + peak, self.idle + idle

    def take(self) -> dict[str, float]:
        """{} if no router ran."""
        found = {"expert_peak": self.peak / self.count, "expert_idle": self.idle / self.count} if self.count else {}
        self.__init__()
        return found
