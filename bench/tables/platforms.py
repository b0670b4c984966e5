"""What runs where: memory, processors, one file."""

from __future__ import annotations

from tables.render import table


def fits(data: dict) -> list[str]:
    def cell(plan: dict) -> str:
        how = {"recomputes": "fits, some layers twice"}.get(plan["how"], plan["how"])
        return how + ("" if plan["peak_mib"] is None else f" ({plan['peak_mib'] / 1024:.1f})")

    return table(
        ("model", "type", "file, GiB", *(f"{size} GiB" for size in data["sizes_gib"])),
        [
            (
                row["model"],
                row["type"],
                f"{row['file_mib'] / 1024:.1f}",
                *(cell(row["sizes"][str(size)]) for size in data["sizes_gib"]),
            )
            for row in data["rows"]
        ],
    )


def aarch64(data: dict) -> list[str]:
    s, t = data["suite"], data["training"]
    how = f"emulated by QEMU as a {data['processor']}" if data["emulated"] else "on such a processor"
    rows = [(f"`{name}.py`", f["passed"], f["failed"], f["skipped"]) for name, f in s["files"].items()]
    total = [sum(f[key] for f in s["files"].values()) for key in ("passed", "failed", "skipped")]
    return [
        f"The suite's core, {how}, with Python {t['there']['python']} and NumPy {t['there']['numpy']}:",
        "",
        *table(("", "passed", "failed", "skipped"), [*rows, ("**all**", *total)]),
        "",
        f"{len(t['there']['losses'])} steps on {t['model']} with compiled kernels: the losses differ from x86-64's by "
        f"{t['largest_difference']:.1e} at most.",
    ]


def onefile(data: dict) -> list[str]:
    def said(file: dict) -> str:
        if not file["tried"]:
            return "not tried: no such processor was there"
        names = ", ".join(c["command"].split()[1].strip("-") for c in file["tried"])
        return names + (", emulated by QEMU; nothing else was tried" if file["emulated"] else "")

    return table(
        ("file", "MiB", "commands that ran with it in an empty environment"),
        [(f"`{f['file']}`", f"{f['mib']:.0f}", said(f)) for f in data["files"]],
    )
