"""What every table needs: a result, Markdown rows, and the line that says where the figures are from."""

from __future__ import annotations

import json
from pathlib import Path

RESULTS = Path(__file__).resolve().parents[1] / "results"
PEERS = ("numpy", "torch", "transformers", "peft", "xllamacpp")


def result(name: str) -> dict | None:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text("utf-8")) if path.exists() else None


def table(head: tuple[str, ...], rows: list[tuple]) -> list[str]:
    line = "| " + " | ".join(head) + " |"
    return [line, "|" + " --- |" * len(head), *("| " + " | ".join(map(str, row)) + " |" for row in rows)]


def where(data: dict, note: bool = True) -> str:
    """The line under a table: command, machine, date."""
    m, v = data["machine"], data["versions"]
    peers = ", ".join(f"{name} {v[name]}" for name in PEERS if name in v)
    cpu = m["cpu"] + (f" ({m['generation']})" if m.get("generation") else "")
    more = f" {data['note']}" if note and "note" in data else ""
    return (
        f"`{data['command']}`, {data['date'][:10]}, commit {data['commit']}: {cpu}, {m['cores']} cores, "
        f"{m['memory_gib']:.0f} GiB; Python {m['python']}, {peers}.{more}"
    )


def times(ratio: float) -> str:
    return f"**{ratio:.2f}×**"
