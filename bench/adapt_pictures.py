"""The pictures of docs/adapt.md, drawn from bench/results/adapt_*.json as SVG.

python bench/adapt_pictures.py
"""

from __future__ import annotations

import json
import math
from html import escape

import common
from anytune.train.plot import nice_ticks

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 360, 64, 190, 44, 44
COLORS = ("#1f6feb", "#d1242f", "#1a7f37", "#9a6700", "#8250df", "#57606a")


def lines(title: str, series: dict[str, list[tuple[float, float]]], across: str, up: str, log: bool = False) -> str:
    """A line for each series; log: of the values."""
    points = [point for line in series.values() for point in line]
    xs, ys = [x for x, _ in points], [math.log10(y) if log else y for _, y in points]
    grid = [0.0] if log else nice_ticks(0.0, max(ys))
    low, high = (math.floor(min(ys)), math.ceil(max(ys))) if log else (0.0, max(grid[-1], max(ys)))

    def at(x: float, y: float) -> tuple[float, float]:
        value = math.log10(y) if log else y
        return (
            LEFT + (x - min(xs)) / (max(xs) - min(xs)) * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM),
        )

    parts = head(title)
    ticks = [10.0**n for n in range(int(low), int(high) + 1)] if log else grid
    for tick in ticks:
        y = at(min(xs), tick)[1]
        parts.append(
            f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#e4e4e4"/><text x="{LEFT - 8}" y="{y:.1f}" '
            f'dy="4" text-anchor="end">{tick:g}</text>'
        )
    for x in sorted({round(x) for x in xs if len(set(xs)) < 12 or round(x) % 5 == 0}):
        parts.append(
            f'<text x="{at(x, 10.0**low if log else 0)[0]:.1f}" y="{HEIGHT - BOTTOM + 18}" '
            f'text-anchor="middle">{x}</text>'
        )
    for number, (name, line) in enumerate(series.items()):
        color, path = COLORS[number % len(COLORS)], " ".join("{:.1f},{:.1f}".format(*at(*point)) for point in line)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2.2"/>')
        y = TOP + 14 + 22 * number
        parts.append(
            f'<path d="M{WIDTH - RIGHT + 14} {y}h20" stroke="{color}" stroke-width="3"/>'
            f'<text x="{WIDTH - RIGHT + 40}" y="{y + 4}">{escape(name)}</text>'
        )
    parts.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}" text-anchor="middle">{escape(across)}</text>'
        f'<text x="14" y="{(TOP + HEIGHT - BOTTOM) / 2}" text-anchor="middle" transform="rotate(-90 14 '
        f'{(TOP + HEIGHT - BOTTOM) / 2})">{escape(up)}</text></svg>'
    )
    return "\n".join(parts)


def bars(title: str, rows: dict[str, float], what: str) -> str:
    """A bar for each value."""
    parts, most = head(title, 84 + 34 * len(rows)), max(rows.values())
    for number, (name, value) in enumerate(rows.items()):
        y, width = TOP + 8 + 34 * number, value / most * (WIDTH - 330)
        parts.append(
            f'<text x="236" y="{y + 15}" text-anchor="end">{escape(name)}</text>'
            f'<rect x="246" y="{y}" width="{width:.1f}" height="22" fill="{COLORS[0 if number else 5]}"/>'
            f'<text x="{254 + width:.1f}" y="{y + 15}">{value:.3f}</text>'
        )
    parts.append(f'<text x="246" y="{TOP + 28 + 34 * len(rows)}" fill="#57606a">{escape(what)}</text></svg>')
    return "\n".join(parts)


def head(title: str, height: int = HEIGHT) -> list[str]:
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        'font-family="system-ui,sans-serif" font-size="13" fill="#333">',
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        f'<text x="{LEFT}" y="24" font-size="16" fill="#111">{escape(title)}</text>',
    ]


def results(part: str) -> dict:
    return json.loads((common.RESULTS / f"adapt_{part}.json").read_text())["results"]


def main() -> None:
    docs, prompt = common.ROOT / "docs", results("prompt")
    whole = prompt["closed form, rank 16"]
    gaps = {
        name: list(enumerate(prompt[key]["gaps"], 1))
        for name, key in (
            ("rank 16", "closed form, rank 16"),
            ("rank 4", "closed form, rank 4"),
            ("rank 16, 8 e-mails", "closed form, 8 e-mails"),
        )
        if key in prompt
    }
    (docs / "adapt-layers.svg").write_text(
        lines(
            "How far the streams differ on the tokens fitted to, by layer",
            gaps,
            "layer",
            "difference / size of the stream",
        )
    )
    values = {
        name.split(".")[2]: list(enumerate(worth, 1))
        for name, worth in whole["worth"].items()
        if name.split(".")[2] in ("attn_q", "attn_v", "attn_output", "ffn_up", "ffn_down")
    }
    (docs / "adapt-ranks.svg").write_text(
        lines("What each rank of a change is worth (layer 15 of 30)", values, "rank", "weighted singular value", True)
    )
    drift = {
        "the prompt itself": whole["teacher_drift"],
        **{
            name.replace(" in the same time", ""): row.get("drift", row["after"].get("drift"))
            for name, row in prompt.items()
        },
    }
    (docs / "adapt-drift.svg").write_text(
        bars("Drift on ordinary text", drift, "KL to the model as it was, nats a token")
    )


if __name__ == "__main__":
    main()
