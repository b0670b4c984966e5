"""The loss plot, as SVG written by hand: any browser shows it, and no plotting library is loaded."""

from __future__ import annotations

import math
from html import escape
from pathlib import Path

from anytune.files import atomic_write
from anytune.train.metrics import read

WIDTH, HEIGHT = 860, 460
LEFT, RIGHT, TOP, BOTTOM = 64, 20, 44, 48
POINTS = 1500  # more cannot be seen; longer runs are averaged down to this many


def plot_losses(metrics: Path, out: Path, title: str) -> bool:
    """Draw loss, its moving average and val_loss over steps. False if there is nothing to draw yet.

    Raises OSError if `out` cannot be written.
    """
    rows = read(metrics)
    losses = [(r["step"], r["loss"]) for r in rows if _number(r.get("loss"))]
    vals = [(r["step"], r["val_loss"]) for r in rows if _number(r.get("val_loss"))]
    if not losses:
        return False
    with atomic_write(out) as file:  # the title is a folder's name, whose bytes may not be UTF-8
        file.write(svg(losses, vals, title).encode("utf-8", "backslashreplace"))
    return True


def svg(losses: list[tuple[int, float]], vals: list[tuple[int, float]], title: str) -> str:
    """losses, vals: (step, value) with rising steps; losses not empty."""
    smooth = thin(moving_average(losses))
    losses = thin(losses)
    ys = [y for _, y in losses + vals]
    ticks = nice_ticks(min(ys), max(ys))
    low, high = min(ticks[0], min(ys)), max(ticks[-1], max(ys))
    first, last = losses[0][0], max(losses[-1][0], losses[0][0] + 1)

    def at(point):
        x = LEFT + (point[0] - first) / (last - first) * (WIDTH - LEFT - RIGHT)
        y = HEIGHT - BOTTOM - (point[1] - low) / ((high - low) or 1) * (HEIGHT - TOP - BOTTOM)
        return f"{x:.1f},{y:.1f}"

    def line(points, color, width, opacity=1.0):
        return (
            f'<polyline fill="none" stroke="{color}" stroke-width="{width}" stroke-opacity="{opacity}" '
            f'points="{" ".join(map(at, points))}"/>'
        )

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'font-family="system-ui,sans-serif" font-size="13" fill="#444">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        f'<text x="{LEFT}" y="26" font-size="16" fill="#111">{escape(title)}</text>',
    ]
    for tick in ticks:
        y = at((first, tick)).split(",")[1]
        parts.append(
            f'<path d="M{LEFT} {y}H{WIDTH - RIGHT}" stroke="#e4e4e4"/>'
            f'<text x="{LEFT - 8}" y="{y}" dy="4" text-anchor="end">{tick:.6g}</text>'
        )
    for tick in nice_ticks(first, last):
        if first <= tick <= last and tick == int(tick):
            x = at((tick, low)).split(",")[0]
            parts.append(f'<text x="{x}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{int(tick)}</text>')
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 10}" text-anchor="middle">optimizer step</text>')
    parts += [line(losses, "#4878cf", 1, 0.35), line(smooth, "#2a5db0", 2)]
    legend = [("loss per token (nats)", "#2a5db0")]
    if vals:
        parts.append(line(vals, "#d1603d", 2))
        for x, y in (at(point).split(",") for point in thin(vals)):
            parts.append(f'<circle cx="{x}" cy="{y}" r="3" fill="#d1603d"/>')
        legend.append(("validation", "#d1603d"))
    for i, (name, color) in enumerate(legend):
        x = WIDTH - RIGHT - 280 + 170 * i
        parts.append(f'<path d="M{x} 22h18" stroke="{color}" stroke-width="2"/><text x="{x + 24}" y="26">{name}</text>')
    return "\n".join(parts) + "\n</svg>\n"


def moving_average(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Exponential moving average over about a twentieth of the run, corrected for its start."""
    keep, total, weight, out = 1 - 1 / max(1.0, len(points) / 20), 0.0, 0.0, []
    for step, value in points:
        total, weight = keep * total + (1 - keep) * value, keep * weight + (1 - keep)
        out.append((step, total / weight))
    return out


def thin(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most POINTS points: means of equal groups."""
    group = -(-len(points) // POINTS)
    if group == 1:
        return points
    groups = [points[i : i + group] for i in range(0, len(points), group)]
    return [(g[len(g) // 2][0], sum(y for _, y in g) / len(g)) for g in groups]


def nice_ticks(low: float, high: float, wanted: int = 6) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) from at or below low to at or above high."""
    span = (high - low) or max(abs(high), 1e-9) * 0.1
    power = 10.0 ** math.floor(math.log10(span / wanted))
    step = next(m * power for m in (1, 2, 5, 10) if m * power * wanted >= span * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [k * step for k in range(first, max(last, first + 1) + 1)]


def _number(value) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
