"""All measurements, one process after the other; what is measured so far is never lost."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from .cases import Cell, Settings

CHILD = ["-m", "anytune.benchmark.child"]
ROOT = Path(__file__).resolve().parents[2]
Progress = Callable[[int, int, str], None]  # (rounds done, rounds in all, what is measured)


def measure(
    cells: Iterable[Cell],
    settings: Settings,
    keep: Callable[[dict[str, Any]], None],
    progress: Progress = lambda done, total, what: None,
) -> bool:
    """Hand the result of each cell to `keep`. True when all were measured, False where Ctrl-C ended it: what the cell
    under way had measured by then is kept, too."""
    cells = list(cells)
    total = len(cells) * settings.repeats
    for number, cell in enumerate(cells):
        what, before = f"{cell.model.name} {cell.device} {cell.test.name}", number * settings.repeats
        seconds: list[float] = []
        within: list[dict[str, Any]] = []
        facts: dict[str, Any] = {}
        problem, whole = None, True
        progress(before, total, what)
        try:
            problem = _measure(
                cell, settings, seconds, within, facts, lambda: progress(before + len(seconds), total, what)
            )
        except KeyboardInterrupt:
            whole = False
        if whole or seconds:
            keep(result(cell, facts, seconds, problem, within))
        if not whole:
            return False
    progress(total, total, "")
    return True


def result(
    cell: Cell, facts: dict[str, Any], seconds: list[float], problem: str | None, within: Sequence[dict[str, Any]] = ()
) -> dict[str, Any]:
    """A cell's row of the document: rates in tokens/s, bytes, and what the process said about itself. A cell that
    failed has its problem and no rate.

    within: what each round said of its own course, see generation.py: first_token_s, peak, lowest."""
    rates = [] if problem else [round(facts.get("count", cell.test.count) / max(s, 1e-9), 3) for s in seconds]
    middle = statistics.median(rates) if rates else None
    return {
        "model": cell.model.name,
        "test": cell.test.name,
        "kind": cell.test.kind,
        "examples": cell.test.examples,
        "tokens": cell.test.tokens,
        "depth": cell.test.depth,
        "asked_device": cell.device,
        "device": _device(cell, facts),
        "threads": facts.get("threads", cell.threads),
        "tokens_per_s": middle,
        "min": min(rates, default=None),
        "max": max(rates, default=None),
        "mad": middle and round(statistics.median(abs(r - middle) for r in rates), 3),
        "rounds": rates,
        **{name: [] if problem else [w.get(name) for w in within] for name in ("first_token_s", "peak", "lowest")},
        **{
            name: facts.get(name)
            for name in (
                "hardware",
                "identity",
                "estimate_bytes",
                "how",
                "peak_bytes",
                "host_peak_bytes",
                "seconds_to_ready",
            )
        },
        **({"training": facts["training"]} if "training" in facts else {}),
        "problem": problem,
    }


def _device(cell: Cell, facts: dict[str, Any]) -> str:
    """What auto turned out to be, and the number of a numbered one."""
    engine = facts.get("engine")
    return cell.device if engine is None or cell.device.startswith(f"{engine}:") else engine


def _measure(
    cell: Cell,
    settings: Settings,
    seconds: list[float],
    within: list[dict[str, Any]],
    facts: dict[str, Any],
    step: Callable[[], None],
) -> str | None:
    """Run one process; its rounds go to `seconds` and `within`, what it says to `facts`. Returns what went wrong, in a
    sentence."""
    job = {
        "model": str(cell.model),
        "device": cell.device,
        "threads": cell.threads,
        "peer": cell.peer,
        "test": asdict(cell.test),
        "settings": asdict(settings),
    }
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    with tempfile.TemporaryFile() as log:
        # a session of its own: Ctrl-C is for this process to hear, which then ends the other
        child = subprocess.Popen(
            [sys.executable, *CHILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,
        )
        late = threading.Event()
        clock = threading.Timer(settings.timeout or 0, lambda: (late.set(), child.kill()))
        try:
            if settings.timeout:
                clock.start()
            refused = _listen(child, job, seconds, within, facts, step)
            code = child.wait()
        finally:
            clock.cancel()
            child.kill()
            child.wait()
            child.stdout.close()
            with contextlib.suppress(OSError):
                child.stdin.close()
        if refused is not None:
            return refused
        if late.is_set():
            return f"it took more than the {settings.timeout:g} s of --timeout."
        return None if code == 0 and "peak_bytes" in facts else _ending(code, log)


def _listen(
    child: subprocess.Popen,
    job: dict[str, Any],
    seconds: list[float],
    within: list[dict[str, Any]],
    facts: dict[str, Any],
    step: Callable[[], None],
) -> str | None:
    """Until it has said all; returns its sentence if it refused."""
    try:
        child.stdin.write(json.dumps(job).encode() + b"\n")  # and stays open: it leaves when this process is gone
        child.stdin.flush()
    except OSError:  # it has already ended; its exit code says how
        return None
    for line in child.stdout:
        try:
            said = json.loads(line)
        except ValueError:
            continue
        if "refused" in said:
            return " ".join(said["refused"].split())
        if "seconds" in said:
            seconds.append(float(said["seconds"]))
            within.append(said.get("stats") or {})
            step()
        facts.update(said.get("ready", {}), **said.get("done", {}))
    return None


def _ending(code: int, log: IO[bytes]) -> str:
    """What an exit code and the last line that a process wrote mean."""
    log.seek(max(0, log.seek(0, os.SEEK_END) - 4096))
    lines = [line.strip() for line in log.read().decode("utf-8", "replace").splitlines() if line.strip()]
    last = f": {lines[-1][:200]}" if lines else "."
    if code >= 0:
        return f"its process ended with exit code {code}{last}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    more = " (the system does this when memory runs out)" if name == "SIGKILL" else ""
    return f"its process was killed by {name}{more}{last}"
