"""How fast a generation ran: time to the first token, and peak, mean and lowest rate."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .table import grid, rate

WINDOW = 8  # tokens over which a momentary rate is taken: a single token's time is mostly the clock's noise


@dataclass(frozen=True)
class GenerationStats:
    """One generation. first_token_s: seconds from feeding the prompt to the first token; mean, peak, lowest: tokens a
    second after the first token, over all of them and over the fastest and slowest WINDOW of them in a row (None where
    there are too few tokens)."""

    prompt_tokens: int
    tokens: int
    seconds: float
    first_token_s: float | None
    mean: float | None
    peak: float | None
    lowest: float | None

    def as_dict(self) -> dict[str, Any]:
        return {name: round(value, 4) if isinstance(value, float) else value for name, value in asdict(self).items()}

    def text(self) -> str:
        """A line for people."""
        first = "–" if self.first_token_s is None else f"{1000 * self.first_token_s:.0f} ms"
        rates = ", ".join(
            f"{name} {_rate(value)}"
            for name, value in (("peak", self.peak), ("mean", self.mean), ("lowest", self.lowest))
        )
        return (
            f"{self.prompt_tokens} prompt tokens, first token after {first}, {self.tokens} tokens in "
            f"{self.seconds:.2f} s: {rates} tokens/s"
        )


def generation_stats(prompt_tokens: int, started: float, times: Sequence[float]) -> GenerationStats:
    """The figures of one generation whose tokens came at `times`. Times are in seconds of one clock, in order."""
    if not times:
        return GenerationStats(prompt_tokens, 0, 0.0, None, None, None, None)
    window = min(WINDOW, len(times) - 1)
    rates = [window / max(b - a, 1e-9) for a, b in zip(times, times[window:])] if window else []
    mean = (len(times) - 1) / max(times[-1] - times[0], 1e-9) if window else None
    return GenerationStats(
        prompt_tokens,
        len(times),
        times[-1] - started,
        times[0] - started,
        mean,
        max(rates, default=None),
        min(rates, default=None),
    )


def summary(runs: Sequence[GenerationStats]) -> dict[str, Any]:
    """Over several runs of one prompt: the mean time to the first token, the highest peak, the mean of the means, the
    lowest low; None where no run has it."""

    def over(name: str, how: Any) -> float | None:
        values = [value for run in runs if (value := getattr(run, name)) is not None]
        return round(how(values), 4) if values else None

    return {
        "runs": len(runs),
        "first_token_s": over("first_token_s", statistics.fmean),
        "peak": over("peak", max),
        "mean": over("mean", statistics.fmean),
        "lowest": over("lowest", min),
    }


def markdown(runs: Sequence[GenerationStats]) -> str:
    """The runs as a table, the last row over all of them."""
    whole = summary(runs)
    rows = [
        [str(n), str(run.tokens), _ms(run.first_token_s), _rate(run.peak), _rate(run.mean), _rate(run.lowest)]
        for n, run in enumerate(runs, 1)
    ]
    rows.append(
        [
            "all",
            str(sum(run.tokens for run in runs)),
            _ms(whole["first_token_s"]),
            _rate(whole["peak"]),
            _rate(whole["mean"]),
            _rate(whole["lowest"]),
        ]
    )
    return "\n".join(grid(["run", "tokens", "TTFT, ms", "peak t/s", "mean t/s", "lowest t/s"], rows, "lrrrrr"))


def _ms(seconds: float | None) -> str:
    return "–" if seconds is None else f"{1000 * seconds:.0f}"


def _rate(value: float | None) -> str:
    return "–" if value is None else rate(value)
