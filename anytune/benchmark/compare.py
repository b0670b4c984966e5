"""Two documents side by side: ratios, which of them are more than noise, and what else differs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from typing import Any

from .table import clean, grid, rate

FEW = 3  # rounds below which a spread says nothing
Row = dict[str, Any]
# results are matched by what is named first; the rest, if unique on both sides, by fewer and fewer fields
KEYS: tuple[Callable[[Row], Hashable], ...] = (
    lambda r: (r["model"], r["device"], r["threads"], r["test"]),
    lambda r: (r["model"], r["device"], r["test"]),
    lambda r: (r["model"], r["test"]),
    lambda r: (r["device"], r["test"]),
    lambda r: r["test"],
)


def compare(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """{pairs: [what both measured, ratios b / a, verdict], only_a, only_b: results without a partner, differs:
    sentences about machines, versions, settings and models}. Raises nothing for documents that load() has passed."""
    pairs, rest_a, rest_b = _match(a["results"], b["results"])
    return {
        "pairs": [_pair(x, y) for x, y in pairs],
        "only_a": [_name(r) for r in rest_a],
        "only_b": [_name(r) for r in rest_b],
        "differs": [
            *_models(a, b, pairs),
            *_fields("machine", a, b, ("load_before",)),
            *_fields("versions", a, b),
            *_fields("settings", a, b, ("repeats", "timeout")),
            *_interrupted(a, b),
        ],
    }


def _match(left: list[Row], right: list[Row]) -> tuple[list[tuple[Row, Row]], list[Row], list[Row]]:
    pairs: list[tuple[Row, Row]] = []
    for key in KEYS:
        once = [{k for k, n in Counter(map(key, rows)).items() if n == 1} for rows in (left, right)]
        partners = {key(r): r for r in right if key(r) in once[1]}
        found = [(r, partners[key(r)]) for r in left if key(r) in once[0] and key(r) in partners]
        pairs += found
        left = [r for r in left if not any(r is x for x, _ in found)]
        right = [r for r in right if not any(r is y for _, y in found)]
    return pairs, left, right


def _pair(x: Row, y: Row) -> dict[str, Any]:
    speed = _ratio(x["tokens_per_s"], y["tokens_per_s"])
    return {
        "a": _name(x),
        "b": _name(y),
        "test": x["test"],
        "a_tokens_per_s": x["tokens_per_s"],
        "b_tokens_per_s": y["tokens_per_s"],
        "ratio": speed,
        "verdict": _verdict(x, y),
        "memory_ratio": _ratio(x.get("peak_bytes"), y.get("peak_bytes")),
    }


def _verdict(x: Row, y: Row) -> str:
    """Overlapping ranges are noise: with five rounds, equal machines are declared different once in 126 times."""
    if x["tokens_per_s"] is None or y["tokens_per_s"] is None:
        return f"failed in {' and '.join(n for n, r in (('A', x), ('B', y)) if r['tokens_per_s'] is None)}"
    if min(len(x["rounds"]), len(y["rounds"])) < FEW:
        return "too few rounds to tell"
    if x["min"] <= y["max"] and y["min"] <= x["max"]:
        return "within noise"
    return "B is faster" if y["tokens_per_s"] > x["tokens_per_s"] else "B is slower"


def _ratio(x: float | None, y: float | None) -> float | None:
    return None if x is None or y is None else round(y / x, 4)


def _name(r: Row) -> str:
    threads = f", {r['threads']} threads" if r["threads"] else ""
    return f"{r['model']}, {r['device']}{threads}, {r['test']}"


def _fields(part: str, a: dict[str, Any], b: dict[str, Any], but: tuple[str, ...] = ()) -> list[str]:
    names = sorted({*a[part], *b[part]} - set(but))
    return [
        f"{part} differ in {name}: {_short(a[part].get(name))} in A, {_short(b[part].get(name))} in B"
        for name in names
        if a[part].get(name) != b[part].get(name)
    ]


def _short(value: Any) -> str:
    return "nothing" if value is None else str(value)[:80]


def _models(a: dict[str, Any], b: dict[str, Any], pairs: list[tuple[Row, Row]]) -> list[str]:
    hashes = [{m["file"]: m.get("sha256") for m in d["models"]} for d in (a, b)]
    seen = dict.fromkeys((x["model"], y["model"]) for x, y in pairs)
    return [
        f"models differ: {one} in A, {two} in B" + (" (another file of the same name)" if one == two else "")
        for one, two in seen
        if hashes[0].get(one) != hashes[1].get(two)
    ]


def _interrupted(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    return [
        f"{name} was interrupted before everything was measured"
        for name, d in (("A", a), ("B", b))
        if d.get("interrupted")
    ]


def report(found: dict[str, Any]) -> str:
    """The comparison for a person."""
    rows = []
    for p in found["pairs"]:
        same = p["a"] == p["b"]
        rows.append(
            [
                p["a"] if same else f"{p['a']} / {p['b']}",
                *(_rate(p[f"{side}_tokens_per_s"]) for side in "ab"),
                _times(p["ratio"]),
                p["verdict"],
                _times(p["memory_ratio"]),
            ]
        )
    lines = (
        grid(["measured", "A t/s", "B t/s", "B / A", "speed", "memory B / A"], rows, "lrrrlr")
        if rows
        else ["The two files have no test in common."]
    )
    lines += [f"only in A: {name}" for name in found["only_a"]] + [f"only in B: {name}" for name in found["only_b"]]
    return clean("\n".join([*lines, *(["", *found["differs"]] if found["differs"] else [])]))


def _rate(value: float | None) -> str:
    return "–" if value is None else rate(value)


def _times(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}×"
