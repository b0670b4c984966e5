"""Results for people: a Markdown table that is lined up in a terminal too, or CSV."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Sequence
from typing import Any

from anytune.units import bytes_text, quantity

_CSV = (
    "model",
    "test",
    "device",
    "hardware",
    "threads",
    "tokens_per_s",
    "min",
    "max",
    "mad",
    "peak_bytes",
    "host_peak_bytes",
    "estimate_bytes",
    "seconds_to_ready",
    "problem",
)


def markdown(document: dict[str, Any]) -> str:
    """The table, then what it was measured on, then the cells that failed."""
    models = {m["file"]: m for m in document["models"]}
    rows, failed = [], []
    for r in document["results"]:
        m = models.get(r["model"], {})
        rows.append(
            [
                r["model"],
                str(m.get("type", "")),
                bytes_text(m["bytes"]) if "bytes" in m else "",
                quantity(m["parameters"]) if "parameters" in m else "",
                r["device"],
                _or_dash(r["threads"]),
                r["test"],
                "failed" if r["tokens_per_s"] is None else rate(r["tokens_per_s"]),
                "–" if r["tokens_per_s"] is None else f"{rate(r['min'])} – {rate(r['max'])}",
                _milliseconds(middle(r, "first_token_s")),
                _range(middle(r, "lowest"), middle(r, "peak")),
                _size(r["peak_bytes"]),
                _size(r["estimate_bytes"]),
            ]
        )
        if r["problem"]:
            failed.append(f"{r['model']}, {r['device']}, {r['test']}: {r['problem']}")
    titles = [
        "model",
        "type",
        "size",
        "params",
        "device",
        "threads",
        "test",
        "t/s",
        "min – max",
        "TTFT, ms",
        "low – peak t/s",
        "peak memory",
        "estimate",
    ]
    lines = [*grid(titles, rows, "llrrlrlrrrrrr"), "", *epochs(document), *ran_on(document)]
    lines += ["", *failed] if failed else []
    lines += ["Interrupted: results so far."] if document["interrupted"] else []
    return clean("\n".join(lines))


def epochs(document: dict[str, Any]) -> list[str]:
    """What the steps on a file come to, as time: a table, or nothing."""
    rows = []
    for r in document["results"]:
        t, speed = r.get("training"), r["tokens_per_s"]
        if not isinstance(t, dict) or not speed:
            continue
        epoch = t["tokens_per_epoch"] / speed
        times = (epoch / t["steps_per_epoch"], epoch, epoch * t["epochs"])
        rows.append([r["model"], r["device"], rate(speed), *map(_time, times)])
    if not rows:
        return []
    settings = document["settings"]
    whole = f"full training ({settings.get('epochs')} epochs)"
    head = ["model", "device", "tokens/s", "time/step", "time/epoch", whole]
    return [
        *grid(head, rows, "llrrrr"),
        "",
        f"{settings.get('train_file')}: measured steps, extrapolated to all steps; without evaluations, checkpoints "
        "and start-up.",
        "",
    ]


def _time(seconds: float) -> str:
    """As the published tables write it: 1.1s, 5m 32s, 1h 40m."""
    if seconds < 60:
        return f"{seconds:.2g}s" if seconds < 10 else f"{seconds:.0f}s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m {rest}s" if minutes < 60 else f"{minutes // 60}h {minutes % 60}m"


def ran_on(document: dict[str, Any]) -> list[str]:
    """Two lines: the machine, and how it was measured."""
    m, s = document["machine"], document["settings"]
    hardware = sorted(
        {
            f"{r['device']}: {r['hardware']}"
            for r in document["results"]
            if r.get("hardware") and r["hardware"] != m.get("cpu")
        }
    )
    packages = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    return [
        f"{m.get('cpu')}, {m.get('cores')} cores, {m.get('memory_gib')} GiB, {m.get('system')}, "
        f"Python {m.get('python')}; {packages}" + (f". {'; '.join(hardware)}" if hardware else ""),
        f"{document.get('date')}: medians of {s.get('repeats')} rounds after {s.get('warmup')} to warm up; LoRA of "
        f"rank {s.get('rank')} on all linears.",
    ]


def csv_text(document: dict[str, Any]) -> str:
    """One line a result."""
    out = io.StringIO()
    writer = csv.DictWriter(out, _CSV, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(document["results"])
    return out.getvalue().rstrip("\n")


def grid(titles: Sequence[str], rows: Sequence[Sequence[str]], sides: str) -> list[str]:
    """A Markdown table; sides: l or r for each column."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (titles, *rows)]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(titles))]
    lines = [
        "| "
        + " | ".join(cell.rjust(w) if side == "r" else cell.ljust(w) for cell, w, side in zip(row, widths, sides))
        + " |"
        for row in cells
    ]
    rule = "| " + " | ".join("-" * (w - 1) + (":" if side == "r" else "-") for w, side in zip(widths, sides)) + " |"
    return [lines[0], rule, *lines[1:]]


def rate(value: float) -> str:
    """Four digits or so: 12,345  1234  123.4  12.30."""
    return f"{value:,.0f}" if value >= 10_000 else f"{value:.0f}" if value >= 1000 else f"{value:#.4g}".rstrip(".")


def clean(text: str) -> str:
    """Without control characters: a file may come from anybody, and terminals obey them."""
    return "".join(c if c == "\n" or c.isprintable() else "?" for c in text)


def middle(row: dict[str, Any], name: str) -> float | None:
    """The median over the rounds of what each round had."""
    values = [value for value in row.get(name) or [] if value is not None]
    return statistics.median(values) if values else None


def _milliseconds(seconds: float | None) -> str:
    return "–" if seconds is None else f"{1000 * seconds:.0f}" if seconds >= 0.01 else f"{1000 * seconds:.2g}"


def _range(low: float | None, high: float | None) -> str:
    return "–" if low is None or high is None else f"{rate(low)} – {rate(high)}"


def _size(value: int | None) -> str:
    return "–" if value is None else bytes_text(value)


def _or_dash(value: Any) -> str:
    return "–" if value is None else str(value)
