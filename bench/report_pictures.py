"""The pictures of docs/report.md: the layers, and how a weight larger than a binding is multiplied.

python bench/report_pictures.py
"""

from __future__ import annotations

from hardware_pictures import COLORS, DOCS, HEAD, arrow, box, svg, text

PALE, LINE = "#eef3f8", "#4e79a7"
LAYERS = (  # from the top: what it is, its parts, its one rule
    ("Interfaces", ("command line", "Python", "studio, serve (HTTP)"), "parse, call, print: nothing is computed here"),
    ("Capabilities", ("train", "adapt", "evaluate", "export", "quantize", "bench"), "one command's work each"),
    ("Model", ("mixers, feed-forwards", "forward, backward", "LoRA", "memory plan"), "knows operations, no devices"),
    (
        "Operations",
        ("embed", "rms_norm", "linear + LoRA", "rope", "attention", "glu", "cross_entropy", "adamw"),
        "each with its backward; one meaning, one reference in float64",
    ),
    (
        "Engines",
        ("numpy", "cpu-bf16", "torch", "webgpu", "fpga-sim"),
        "know devices, no models; all pass the same checks",
    ),
    ("Devices", ("x86, ARM", "AVX512-BF16", "CUDA, ROCm, XPU, MPS", "Vulkan, Metal, DX12", "simulated cores"), ""),
)


def architecture() -> str:
    wide, high, left, parts = 900, 62, 118, [HEAD]
    for number, (title, names, rule) in enumerate(LAYERS):
        y = 14 + number * (high + 22)
        parts.append(text(8, y + 24, title, font_weight="bold"))
        each = (wide - left - 14) / len(names)
        for place, name in enumerate(names):
            x = left + place * each
            parts += [box(x + 3, y, each - 6, 38, PALE, LINE), text(x + each / 2, y + 23, name, text_anchor="middle")]
        parts.append(text(left + 3, y + 53, rule, fill="#555"))
        if number < len(LAYERS) - 1:
            parts.append(arrow(60, y + 34, 60, y + high + 18))
    return svg(wide, 14 + len(LAYERS) * (high + 22), parts)


def matrix(x: float, y: float, rows: int, fill: str, label: str, columns: int = 5, size: float = 16) -> list[str]:
    parts = [box(x + size * c, y + size * r, size, size, fill) for r in range(rows) for c in range(columns)]
    return [*parts, text(x + size * columns / 2, y + size * rows + 15, label, text_anchor="middle")]


def tiling() -> str:
    """Three steps: cut, multiply slice after slice, read raw blocks within a slice."""
    slices, parts = (3, 3, 2), [HEAD]
    for number, title in enumerate(
        ("1. Cut the weight by rows", "2. Multiply slice after slice", "3. In a slice: tiles of raw blocks")
    ):
        parts.append(text(14 + 300 * number, 22, title, font_weight="bold"))
    y = 40.0
    for count, color in zip(slices, COLORS, strict=False):
        parts += [box(20 + 16 * c, y + 16 * r, 16, 16, color) for r in range(count) for c in range(8)]
        parts.append(text(156, y + 8 * count + 4, "≤ one binding"))
        y += 16 * count + 6
    parts += [
        text(20, y + 14, "W [out, in] as in the file; a slice ends"),
        text(20, y + 29, "at a multiple of 64 rows,"),
        text(20, y + 44, "so its offset is aligned"),
    ]
    y = 40.0
    for count, color in zip(slices, COLORS, strict=False):
        parts += [
            box(320, y, 60, 16 * count, PALE, LINE),
            text(350, y + 8 * count + 4, "X", text_anchor="middle"),
            text(388, y + 8 * count + 4, "×"),
            box(400, y, 60, 16 * count, color),
            arrow(464, y + 8 * count, 484, y + 8 * count),
            box(490, y, 60, 16 * count, color),
        ]
        y += 16 * count + 6
    parts += [
        text(320, y + 14, "Each slice gives its columns of Y."),
        text(320, y + 29, "Backward: each adds its share to dX,"),
        text(320, y + 44, "in the slices' order, so sums are reproducible."),
    ]
    for r in range(4):
        for c in range(4):
            parts.append(box(620 + 34 * c, 40 + 34 * r, 34, 34, COLORS[0] if (r, c) == (1, 2) else PALE, LINE))
    parts += [
        text(770, 62, "a workgroup takes"),
        text(770, 77, "one tile of Y;"),
        text(770, 92, "blocks (18 or 34 bytes)"),
        text(770, 107, "are dequantized on"),
        text(770, 122, "their way into"),
        text(770, 137, "workgroup memory"),
        text(620, 196, "The tile's size is what the autotuner"),
        text(620, 211, "finds fastest on the device"),
    ]
    return svg(920, 262, parts)


if __name__ == "__main__":
    (DOCS / "report-architecture.svg").write_text(architecture(), "utf-8")
    (DOCS / "report-tiling.svg").write_text(tiling(), "utf-8")
