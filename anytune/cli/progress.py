"""How far a long command is: a line on stderr with rate and time left, rewritten in place on a terminal."""

from __future__ import annotations

import sys
import time


AT_ONCE = 0.1  # seconds: what is done by then was there before, of an earlier run, and says nothing about the rate


class Progress:
    """what: the work; unit: what is counted, such as tokens. Off a terminal, one line each tenth of the way."""

    def __init__(self, what: str, unit: str, quiet: bool = False):
        self.what, self.unit, self.quiet = what, unit, quiet
        self.start, self.shown, self.tenth, self.before = time.monotonic(), -1.0, 0, 0
        self.live = sys.stderr.isatty()
        self.open = False  # a line is unfinished

    def to(self, done: int, total: int, remark: str = "") -> None:
        now = time.monotonic()
        if now - self.start < AT_ONCE:
            self.before = done
        if self.quiet:
            return
        if self.live:
            if now - self.shown > 0.2 or done >= total:
                self.shown, self.open = now, True
                print(f"\r{self.line(done, total, now, remark)}\x1b[K", end="", file=sys.stderr, flush=True)
        elif done * 10 // max(1, total) > self.tenth:
            self.tenth = done * 10 // max(1, total)
            print(self.line(done, total, now, remark), file=sys.stderr, flush=True)

    def line(self, done: int, total: int, now: float, remark: str = "") -> str:
        from anytune.train.progress import duration
        from anytune.units import quantity

        rate, pace = (done - self.before) / max(now - self.start, 1e-6), ""
        if rate:
            pace = f"  {quantity(round(rate))}/s  ETA {duration((total - done) / rate)}"
        return (
            f"{self.what}: {100 * done // max(1, total)} %  {quantity(done)} of {quantity(total)} {self.unit}{pace}"
            + (f"  {remark}" if remark else "")
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self.open:
            print(file=sys.stderr)
