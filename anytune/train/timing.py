"""What a run's training took: in all, a step, an epoch, and tokens a second."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from anytune.train.progress import duration


@dataclass(frozen=True)
class Timing:
    """Of the steps alone: evaluation, checkpoints and pauses between interruption and resume are not in it."""

    seconds: float
    steps: int
    epochs: float
    tokens: int

    @classmethod
    def of(cls, rows: Sequence[dict[str, Any]]) -> Timing | None:
        """From rows of metrics.jsonl; None without a step."""
        if not rows:
            return None
        # rows of versions before `seconds` tell it by their rate
        seconds = sum(row.get("seconds") or row["tokens"] / max(row["tokens_per_s"], 1e-9) for row in rows)
        return cls(seconds, len(rows), rows[-1]["epoch"], sum(row["tokens"] for row in rows))

    def as_dict(self) -> dict[str, Any]:
        """seconds in all, seconds_per_step, seconds_per_epoch, tokens_per_s."""
        return {
            "seconds": round(self.seconds, 3),
            "seconds_per_step": round(self.seconds / self.steps, 4),
            "seconds_per_epoch": round(self.seconds / self.epochs, 3) if self.epochs else None,
            "tokens_per_s": round(self.tokens / max(self.seconds, 1e-9), 2),
        }

    def text(self) -> str:
        facts = self.as_dict()
        step, epoch = (facts[key] and _fine(facts[key]) for key in ("seconds_per_step", "seconds_per_epoch"))
        each = f"{step} a step" + (f", {epoch} an epoch" if epoch else "")
        return f"Time: {duration(self.seconds)} of training, {each}, {facts['tokens_per_s']:,.0f} tokens/s"


def _fine(seconds: float) -> str:
    """0.32 -> '0.32 s', 70 -> '1m 10s'."""
    return f"{seconds:.2f} s" if seconds < 10 else duration(seconds)
