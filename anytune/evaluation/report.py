"""A report: what was found, as one HTML file for people or one JSON file for programs.

    write("report.html", Report("Base against adapter", {"model": "q.gguf"}, [
        Section("Scores", "Higher is better.", plot=Plot(["chrF"], {"base": [(20.1, 18.0, 22.3)], "adapter": [31.0]})),
        Section("Answers", rows=[Example("Say hello.", {"base": "Hello!", "adapter": "ahoy"}, {"chrF": 12.0})])]))

The HTML needs nothing beside itself: no scripts, no fonts, no pictures from elsewhere, and its own policy forbids them.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anytune.errors import UserError
from anytune.files import atomic_write, cannot_write

Number = float | tuple[float, float, float] | None  # a value, or (value, low, high), or none


@dataclass(frozen=True)
class Table:
    """head: column titles; rows: cells, text or numbers (None: a dash)."""

    head: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Plot:
    """Bars from zero, or, with zero=False, points on an axis that fits them; whiskers where intervals are known.

    labels: what is measured; series: name -> one Number a label; form: format of the values (as in format());
    unit: written behind them; note: a line below; most: the axis reaches at least to here; color: of the first series,
    so that a name keeps its colour (0 is grey).
    """

    labels: Sequence[str]
    series: Mapping[str, Sequence[Number]]
    zero: bool = True
    form: str = ".3g"
    unit: str = ""
    note: str = ""
    most: float | None = None
    color: int = 0


@dataclass(frozen=True)
class Example:
    """A prompt and texts to set side by side: name -> text. facts: small numbers or words below them."""

    prompt: str
    texts: Mapping[str, str]
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Section:
    """A part under its own title: text, then whatever there is of plot, table and examples (rows)."""

    title: str
    text: str = ""
    table: Table | None = None
    plot: Plot | None = None
    rows: Sequence[Example] = ()


@dataclass(frozen=True)
class Report:
    """facts: what was compared with what, shown at the top. data: further results, in the JSON file alone."""

    title: str
    facts: Mapping[str, Any]
    sections: Sequence[Section]
    data: Mapping[str, Any] = field(default_factory=dict)


def check_path(path: str | os.PathLike) -> Path:
    """The path, if its name is a report's. Raises UserError."""
    path = Path(path).expanduser()
    if path.suffix.lower() not in (".html", ".htm", ".json"):
        raise UserError(f"The report {path} must end in .html or .json.")
    return path


def write(path: str | os.PathLike, report: Report) -> None:
    """Write the report as its name says: .html or .json. Raises UserError."""
    path = check_path(path)
    text = as_json(report) if path.suffix.lower() == ".json" else as_html(report)
    try:
        with atomic_write(path) as file:
            file.write(text.encode("utf-8", "replace"))  # a model may write half of a character
    except OSError as error:
        raise cannot_write(path, error) from None


def as_json(report: Report) -> str:
    """title, facts, sections as they are, and `data`'s keys beside them; what is not finite becomes null."""
    sections = [_section(section) for section in report.sections]
    value = {"title": report.title, "facts": report.facts, "sections": sections, **report.data}
    return json.dumps(plain(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _section(section: Section) -> dict[str, Any]:
    value: dict[str, Any] = {"title": section.title, "text": section.text}
    if section.table:
        value["table"] = {"head": section.table.head, "rows": section.table.rows}
    if plot := section.plot:
        value["plot"] = {"labels": plot.labels, "series": plot.series, "unit": plot.unit}
    if section.rows:
        value["rows"] = [{"prompt": row.prompt, "texts": row.texts, "facts": row.facts} for row in section.rows]
    return value


def as_html(report: Report) -> str:
    """One page; whatever the report holds is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters["cell"] = cell
    return environment.get_template("report.html.jinja").render(report=report, drawn=drawn)


def as_text(table: Table) -> str:
    """A table for the terminal: the first column to the left, the others to the right."""
    rows = [list(table.head), *([cell(value) for value in row] for row in table.rows)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(f"{value:{'>' if i else '<'}{widths[i]}}" for i, value in enumerate(row)).rstrip() for row in rows
    )


def drawn(plot: Plot) -> dict[str, Any]:
    """Where everything of a plot lies, in percent of its width: groups of bars, and ticks."""
    from anytune.train.plot import nice_ticks

    known = [x for values in plot.series.values() for v in values for x in _three(v)]
    known += [] if plot.most is None else [plot.most]
    low, high = (min(known), max(known)) if any(known) else (0.0, 1.0)
    ticks = nice_ticks(min(low, 0.0) if plot.zero else low, max(high, 0.0) if plot.zero else high, 5)

    def at(value: float) -> float:
        return round(100 * (value - ticks[0]) / (ticks[-1] - ticks[0]), 2)

    groups = []
    for i, label in enumerate(plot.labels):
        bars = []
        for number, (name, values) in enumerate(plot.series.items()):
            found = _three(values[i])
            bar: dict[str, Any] = {
                "name": name,
                "color": (number + plot.color) % 4,
                "text": "–",
                "value": None,
                "interval": None,
            }
            if found:
                start, end = sorted((at(0.0), at(found[0]))) if plot.zero else (0.0, 0.0)
                bar |= {
                    "value": at(found[0]),
                    "start": start,
                    "width": round(end - start, 2),
                    "text": format(found[0], plot.form) + plot.unit,
                    "interval": (at(found[1]), at(found[2])) if len(found) == 3 else None,
                }
                if len(found) == 3:
                    bar["range"] = f"{format(found[1], plot.form)} to {format(found[2], plot.form)}"
            bars.append(bar)
        groups.append({"label": label, "bars": bars})
    return {
        "groups": groups,
        "ticks": [(at(tick), f"{tick:.6g}") for tick in ticks],
        "names": list(plot.series),
        "zero": at(0.0) if plot.zero else None,
    }


def _three(value: Number) -> tuple[float, ...]:
    """The finite numbers of a Number: none, one or three."""
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    if any(v is None or not math.isfinite(v) for v in values[:1]):
        return ()
    return tuple(map(float, values)) if all(math.isfinite(v) for v in values) else (float(values[0]),)


def cell(value: Any) -> str:
    """A value as it is in a table or among the facts."""
    value = plain(value)
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {cell(item)}" for key, item in value.items())
    return ", ".join(map(cell, value)) or "–" if isinstance(value, list) else str(value)


def plain(value: Any) -> Any:
    """The value as JSON has it: NumPy's numbers and arrays, tuples, paths; what is not finite is None."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in (sorted(value) if isinstance(value, (set, frozenset)) else value)]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
