"""Which micro-batches of a step are whose, where several processes train one model, and what they tell each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from anytune.distributed.process_group import SingleProcess
from anytune.train.interrupt import Interrupts


class Turns:
    """process_group: those that take turns, this process among them; interrupts: whether it was asked to stop."""

    def __init__(self, process_group: SingleProcess, interrupts: Interrupts):
        self.process_group, self.interrupts = process_group, interrupts
        self.agreed = False  # to stop, as far as the processes have told each other

    @property
    def stop(self) -> bool:
        """Whether to stop: for a process group, what was exchanged, so that all ranks turn off at the same place."""
        return self.interrupts.stop if self.process_group.size == 1 else self.agreed

    def of(self, bins: Sequence) -> list[int | None]:
        """The micro-batches of this rank. None: others have one more; it still takes part in what they exchange."""
        mine = self.process_group.share(range(len(bins)))
        return mine + [None] * (-(-len(bins) // self.process_group.size) - len(mine))

    def share(self, bins: Sequence) -> float:
        """How many of the micro-batches are this rank's, of 1."""
        return len(self.process_group.share(range(len(bins)))) / len(bins)

    def exchange(self, *numbers: Any) -> list[float]:
        """Sums of the numbers over all ranks, which tell each other of a request to stop beside them."""
        stop, *sums = self.process_group.all_reduce([self.interrupts.stop, *numbers])
        self.agreed = stop > 0
        return sums
