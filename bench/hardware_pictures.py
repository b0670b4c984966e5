"""The pictures of docs/hardware.md: the square and its banks, the flow of the products, a waveform, a floor plan.

python bench/hardware_pictures.py                          # square and flow
python bench/hardware_pictures.py --vcd engine.vcd          # of `anytune fpga simulate --vcd engine.vcd`
python bench/hardware_pictures.py --placed placed.json      # nextpnr's --write of a routed core
"""

from __future__ import annotations

import argparse
import collections
import json
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path

import common  # noqa: F401 (it puts the working tree on the path)

DOCS = Path(__file__).parents[1] / "docs"
COLORS = ("#4e79a7", "#f28e2b", "#59a14f", "#e15759", "#b07aa1", "#76b7b2", "#edc948", "#9c755f")
STYLE = "font-family='sans-serif' font-size='11'"


def svg(width: float, height: float, parts: Iterable[str]) -> str:
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{width:.0f}' height='{height:.0f}' {STYLE}>"
        f"<rect width='100%' height='100%' fill='white'/>{''.join(parts)}</svg>\n"
    )


def text(x: float, y: float, words: str, **more: str) -> str:
    extra = "".join(f" {k.replace('_', '-')}='{v}'" for k, v in more.items())
    return f"<text x='{x:.1f}' y='{y:.1f}'{extra}>{words}</text>"


def box(x: float, y: float, w: float, h: float, fill: str, stroke: str = "white") -> str:
    return f"<rect x='{x:.1f}' y='{y:.1f}' width='{w:.1f}' height='{h:.1f}' fill='{fill}' stroke='{stroke}'/>"


def arrow(x1: float, y1: float, x2: float, y2: float) -> str:
    return f"<line x1='{x1}' y1='{y1}' x2='{x2}' y2='{y2}' stroke='black' marker-end='url(#a)'/>"


HEAD = (
    "<defs><marker id='a' viewBox='0 0 10 10' refX='9' refY='5' markerWidth='7' markerHeight='7' orient='auto'>"
    "<path d='M0 0L10 5L0 10z'/></marker></defs>"
)


def square() -> str:
    """A square's codes, coloured by bank; eight of a row and eight of a column are each in eight banks."""
    parts, size = [], 11
    for n in range(32):
        for k in range(32):
            parts.append(box(20 + size * k, 40 + size * n, size, size, COLORS[(n + k) % 8]))
    edge = "fill='none' stroke='black' stroke-width='2.5'"
    parts.append(f"<rect x='{20 + 8 * size}' y='{40 + 5 * size}' width='{8 * size}' height='{size}' {edge}/>")
    parts.append(f"<rect x='{20 + 20 * size}' y='{40 + 8 * size}' width='{size}' height='{8 * size}' {edge}/>")
    parts += [
        text(20, 18, "A square: 32 rows n x 32 columns k. Code (n, k) lies in bank (n + k) mod 8, its colour."),
        text(20, 33, "Forward reads along one axis, backward along the other: 8 codes a cycle, 8 banks."),
    ]
    for bank, color in enumerate(COLORS):
        parts += [box(400, 60 + 24 * bank, 18, 18, color), text(425, 73 + 24 * bank, f"bank {bank}")]
    return svg(560, 410, parts)


def flow() -> str:
    """Where data goes in a product by rows and in one by columns."""
    parts = [HEAD]
    stages = {
        0: (
            "Y = X Wᵀ (rows)",
            [
                "X: Q8_0 blocks|tile memory",
                "codes of W|8 banks",
                "32 x 8 cells|Σ over 32 k",
                "lanes|× d × xs, float32 +",
                "32 x 32 sums|out",
            ],
        ),
        1: (
            "dX = dY W (columns)",
            [
                "dY: bfloat16|tile memory",
                "prescale|z = dY d → int8 · 2^e",
                "32 x 8 cells|Σ over 32 n",
                "lanes|× 2^e, float32 +",
                "32 x 32 sums|out",
            ],
        ),
    }
    for row, (title, names) in stages.items():
        y = 40 + 130 * row
        parts.append(text(10, y - 12, title, font_weight="bold"))
        for i, name in enumerate(names):
            x = 10 + 165 * i
            parts.append(box(x, y, 140, 54, "#eef3f8", "#4e79a7"))
            parts += [
                text(x + 70, y + 23 + 16 * j, part, text_anchor="middle") for j, part in enumerate(name.split("|"))
            ]
            if i:
                parts.append(arrow(x - 25, y + 27, x - 2, y + 27))
    parts.append(
        text(
            10,
            282,
            "Both directions read the same banks: W is stored once. A scale that factors out of the sum "
            "is applied by the lanes, any other before it, by prescale.",
        )
    )
    return svg(830, 300, parts)


def waveform(path: Path, names: tuple[str, ...], first: int, length: int) -> str:
    """Some signals of a VCD file from cycle `first` on: bits as lines, words as boxes that say when they change."""
    text_ = path.read_text()
    codes = {m[2]: m[1] for m in re.finditer(r"\$var \w+ +\d+ (\S+) (\S+)", text_)}
    values: dict[str, list[tuple[int, str]]] = {name: [] for name in names}
    wanted, time = {codes[name]: name for name in names if name in codes}, 0
    for line in text_[text_.index("$enddefinitions") :].splitlines()[1:]:
        if line.startswith("#"):
            time = int(line[1:])
        elif line[:1] in "01xz" and line[1:] in wanted:
            values[wanted[line[1:]]].append((time, line[0]))
        elif line[:1] == "b" and line.split()[1] in wanted:
            values[wanted[line.split()[1]]].append((time, line.split()[0][1:]))
    parts, left, scale = [], 120, 900 / length
    for row, name in enumerate(names):
        y, at = 30 + 34 * row, 2 * first
        parts.append(text(8, y + 15, name))
        spans = [(max(t, at), v) for t, v in values[name] if t < at + 2 * length]
        spans = [s for i, s in enumerate(spans) if s[0] > at or i + 1 == len(spans) or spans[i + 1][0] > at]
        for t, end, v, busy in merged(spans, at + 2 * length, 4 / scale):
            x1, x2 = left + (t - at) / 2 * scale, left + (end - at) / 2 * scale
            if len(v) == 1 and not busy:
                high = v == "1"
                parts.append(box(x1, y + (2 if high else 17), max(x2 - x1, 0.5), 3, COLORS[2 if high else 7], "none"))
            else:
                edge = "#4e79a7" if x2 - x1 > 3 else "none"
                parts.append(box(x1, y + 2, max(x2 - x1, 0.5), 18, "#4e79a7" if busy else "#cfe0ef", edge))
    parts += [text(left + c * scale, 18, f"{first + c}") for c in range(0, length, length // 6)]
    parts.append(text(8, 18, "cycle"))
    return svg(1040, 40 + 34 * len(names), parts)


def merged(spans: list[tuple[int, str]], end: int, least: float) -> list[tuple[int, int, str, bool]]:
    """(from, to, value, whether it changes all the time): neighbours that are shorter than `least` become one."""
    found: list[tuple[int, int, str, bool]] = []
    for (t, v), (until, _) in zip(spans, [*spans[1:], (end, "")]):
        short = until - t < least
        if short and found and found[-1][3]:
            found[-1] = (found[-1][0], until, v, True)
        else:
            found.append((t, until, v, short))
    return found


def record(folder: Path) -> Path:
    """A VCD file of one product by rows: 32 tokens, 32 x 128 weights of Q4_0."""
    import numpy as np

    from anytune.fpga import formats
    from anytune.fpga.simulation import Simulated, cached
    from anytune.gguf.encode import encode

    rng, path = np.random.default_rng(0), folder / "product.vcd"
    engine = Simulated(cached(trace=True), trace=str(path))
    w = formats.matrix(encode(rng.standard_normal((32, 128)).astype("f4"), "Q4_0"), "Q4_0")
    engine.rows([(formats.q8_0(rng.standard_normal((32, 128)).astype("f4")), w)])
    engine.close()
    return path


def floor(path: Path) -> str:
    """Where each part of a core was placed: a tile has the colour of the part that has most cells in it."""
    module = json.loads(path.read_text())["modules"]["top"]
    tiles: dict[tuple[int, int], collections.Counter] = collections.defaultdict(collections.Counter)
    cells: collections.Counter = collections.Counter()
    for name, cell in module["cells"].items():
        bel = re.match(r"X(\d+)/Y(\d+)/", cell["attributes"].get("NEXTPNR_BEL", ""))
        if bel:
            part = part_of(name)
            tiles[int(bel[1]), int(bel[2])][part] += 1
            cells[part] += 1
    known, size, colors = [part for part, _ in cells.most_common()], 6, (*COLORS, "#333333")
    parts = [box(20, 40, size * 127, size * 96, "#f4f4f4", "#888888")]
    parts.append(text(20, 22, "Tiles of the ECP5-85, coloured by the part with most cells in each; cells in brackets"))
    for y in range(96):
        row = [(x, tiles[x, y].most_common(1)[0][0]) for x in range(127) if (x, y) in tiles]
        while row:
            (first, part), end = row[0], 1
            while end < len(row) and row[end] == (first + end, part):
                end += 1
            color = colors[known.index(part)]
            parts.append(box(20 + size * first, 40 + size * y, size * end, size, color, "none"))
            row = row[end:]
    for i, part in enumerate(known):
        x, y = 20 + 190 * (i % 4), 60 + size * 96 + 20 * (i // 4)
        parts += [box(x, y, 12, 12, colors[i]), text(x + 16, y + 10, f"{part} ({cells[part]:,})")]
    return svg(40 + size * 127, 80 + size * 96 + 20 * (len(known) // 4 + 1), parts)


PARTS = ("array", "lane", "prescale", "results", "tile", "weights", "packets")


def part_of(name: str) -> str:
    """The part of the engine that a cell's name begins with; `wrapper` is what feeds a core that is routed alone."""
    found = re.match(r"core\.engine\.([a-z]+)", name)
    if found and found[1] in PARTS:
        return found[1]
    return "control" if name.startswith("core.") else "wrapper"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--waveform", action="store_true")
    parser.add_argument("--vcd", type=Path)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--length", type=int, default=1800)
    parser.add_argument("--placed", type=Path)
    args = parser.parse_args()
    made = {"square": square(), "flow": flow()}
    with tempfile.TemporaryDirectory(prefix="anytune-vcd-") as folder:
        made |= waveforms(record(Path(folder)) if args.waveform else args.vcd, args)
    if args.placed:
        made["floor"] = floor(args.placed)
    for name, picture in made.items():
        (DOCS / f"hardware-{name}.svg").write_text(picture, "utf-8")


STREAMS = (
    "s_axis_tvalid",
    "s_axis_tready",
    "s_axis_tdata",
    "m_axis_tvalid",
    "m_axis_tready",
    "m_axis_tdata",
    "m_axis_tlast",
)


def waveforms(path: Path | None, args: argparse.Namespace) -> dict[str, str]:
    return {} if path is None else {"waveform": waveform(path, STREAMS, args.first, args.length)}


if __name__ == "__main__":
    main()
