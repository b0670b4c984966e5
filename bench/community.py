"""docs/BENCHMARKS.md, made from benchmarks/community/ and from the machines measured in bench/results/.

python bench/community.py            # check every folder, write the page
python bench/community.py --check    # exit code 1 if a folder is not sound or the page differs
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from anytune.benchmark.document import load  # noqa: E402
from anytune.benchmark.table import _time, middle, rate  # noqa: E402
from anytune.errors import UserError  # noqa: E402

COMMUNITY, RESULTS, PAGE = (
    ROOT / "benchmarks" / "community",
    ROOT / "bench" / "results",
    ROOT / "docs" / "BENCHMARKS.md",
)
TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0")
OWN = "## The project's own measurements"
LEAST = 3  # rounds
NAMED = re.compile(r"(/home/|/Users/|C:\\\\Users\\\\|/root/)[^\s/\\]*")
MEMORY = re.compile(r"out of memory|OutOfMemory|ran out of memory|MiB are allowed|SIGKILL", re.IGNORECASE)


def check(folder: Path) -> list[str]:
    """What is wrong with a machine's folder, a sentence each."""
    found = []
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", folder.name):
        found.append("its name must be lower case with hyphens, such as rtx-4090")
    documents = sorted(folder.glob("bench*.json"))
    for name in ("README.md", "log.txt"):
        if not (folder / name).is_file() or not (folder / name).read_text("utf-8", "replace").strip():
            found.append(f"{name} is missing or empty")
    if not documents:
        found.append("bench.json is missing: anytune bench … -o bench.json")
    for path in documents:
        try:
            document = load(path)
        except UserError as error:
            found.append(str(error))
            continue
        rows = document["results"]
        if not rows:
            found.append(f"{path.name} has no results")
        few = [row["test"] for row in rows if row.get("tokens_per_s") and len(row.get("rounds") or []) < LEAST]
        if few:
            found.append(f"{path.name}: {', '.join(few)} has fewer than {LEAST} rounds (-r {LEAST})")
    for path in sorted(folder.iterdir()):
        if (
            path.is_file()
            and path.suffix in (".json", ".txt", ".md")
            and NAMED.search(path.read_text("utf-8", "replace"))
        ):
            found.append(f"{path.name} names somebody's folder: shorten the path")
    return found


def machines() -> dict[str, list[dict[str, Any]]]:
    """folder name -> its documents."""
    return {
        folder.name: [load(path) for path in sorted(folder.glob("bench*.json"), key=lambda path: path.stem)]
        for folder in sorted(COMMUNITY.iterdir())
        if folder.is_dir()
    }


def cell(row: dict[str, Any] | None, form: Any) -> str:
    if row is None:
        return "–"
    if row["tokens_per_s"] is None:
        return "OOM" if MEMORY.search(row["problem"] or "") else "failed"
    return form(row)


def generation(row: dict[str, Any]) -> str:
    low, peak = middle(row, "lowest"), middle(row, "peak")
    return rate(row["tokens_per_s"]) + ("" if low is None or peak is None else f" ({rate(low)} – {rate(peak)})")


def first_token(row: dict[str, Any]) -> str:
    seconds = middle(row, "first_token_s")
    return f"{1000 * seconds:.0f} ms" if seconds else "–"


def training(row: dict[str, Any]) -> str:
    t = row.get("training")
    if not t:
        return rate(row["tokens_per_s"])
    epoch = t["tokens_per_epoch"] / row["tokens_per_s"]
    return f"{rate(row['tokens_per_s'])}; {_time(epoch / t['steps_per_epoch'])} a step, {_time(epoch)} an epoch"


SECTIONS = (  # (title, which rows, their form)
    ("Generation, tokens/s (slowest and fastest eight in a row)", lambda r: r["kind"] == "generate", generation),
    ("Prompt, tokens/s", lambda r: r["kind"] == "prompt", lambda r: rate(r["tokens_per_s"])),
    ("Time to first token", lambda r: r["kind"] == "prompt", first_token),
    ("Training, tokens/s (LoRA on all linears)", lambda r: r["kind"] in ("train", "file"), training),
)


def stem(name: str) -> str:
    """A model's name without its type, for the table's rows."""
    types = "|".join((*TYPES, "q[0-9]_k(?:_[sml])?", "q[0-9]_[01]", "iq[0-9]_[a-z]+"))
    return re.sub(rf"[-_.](?:{types})$", "", name.removesuffix(".gguf"), flags=re.IGNORECASE)


def section(title: str, wanted: Any, form: Any, found: dict[str, list[dict[str, Any]]]) -> list[str]:
    """A row a model, type and test, a column a device."""
    rows: dict[tuple[str, str, str], dict[str, dict[str, Any]]] = {}
    for machine, documents in found.items():
        for document in documents:
            types = {model["file"]: model.get("type", "") for model in document["models"]}
            for row in filter(wanted, document["results"]):
                column = f"{machine}, {row['device']}"
                rows.setdefault((stem(row["model"]), types.get(row["model"], ""), row["test"]), {})[column] = row
    if not rows:
        return []
    columns = sorted({column for cells in rows.values() for column in cells})
    lines = [
        f"### {title}",
        "",
        f"| model | type | test | {' | '.join(columns)} |",
        "|" + " --- |" * (3 + len(columns)),
    ]
    order = sorted(rows, key=lambda key: (key[0], TYPES.index(key[1]) if key[1] in TYPES else 9, key[1], key[2]))
    lines += [f"| {' | '.join(key)} | {' | '.join(cell(rows[key].get(c), form) for c in columns)} |" for key in order]
    return [*lines, ""]


def hardware(found: dict[str, list[dict[str, Any]]]) -> list[str]:
    lines = [
        "| folder | processor | cores | memory, GiB | other devices | system | anytune | date |",
        "|" + " --- |" * 8,
    ]
    for name, documents in found.items():
        m, d = documents[0]["machine"], documents[0]
        cards = sorted({r["hardware"] for x in documents for r in x["results"] if r.get("hardware")} - {m.get("cpu")})
        values = (
            f"[{name}](../benchmarks/community/{name}/README.md)",
            " ".join(filter(None, (m.get("cpu"), m.get("generation")))),
            m.get("cores"),
            m.get("memory_gib"),
            ", ".join(cards) or "–",
            m.get("system"),
            d["versions"].get("anytune"),
            str(d.get("date"))[:10],
        )
        lines.append(f"| {' | '.join(map(str, values))} |")
    return lines


def findings(found: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Sentences that follow from the numbers: the fastest of each kind, what a type costs, what ran out of memory."""
    rows = [(name, row) for name, documents in found.items() for d in documents for row in d["results"]]
    lines = []
    for kind, what in (
        ("generate", "generation"),
        ("prompt", "prompts"),
        ("train", "training"),
        ("file", "training on a file"),
    ):
        own = [(name, row) for name, row in rows if row["kind"] == kind and row["tokens_per_s"]]
        if own:
            name, row = max(own, key=lambda one: one[1]["tokens_per_s"])
            lines.append(
                f"- Fastest {what}: {rate(row['tokens_per_s'])} tokens/s, {row['model']} ({row['test']}) on {name}, "
                f"{row['device']}."
            )
    by_model: dict[tuple[str, str, str, str, str], dict[str, float]] = {}
    for name, documents in found.items():
        for d in documents:
            types = {model["file"]: model.get("type", "") for model in d["models"]}
            for row in d["results"]:
                if row["tokens_per_s"]:
                    key = (name, row["device"], stem(row["model"]), row["test"], row["kind"])
                    by_model.setdefault(key, {})[types.get(row["model"], "")] = row["tokens_per_s"]
    for kind, what in (("generate", "generation"), ("train", "training")):
        ratios = [t["Q4_0"] / t["Q8_0"] for (*_, k), t in by_model.items() if k == kind and {"Q4_0", "Q8_0"} <= set(t)]
        if ratios:
            lines.append(
                f"- Q4_0 over Q8_0 in {what}: {statistics.median(ratios):.2f} times (median of {len(ratios)})."
            )
    short = sum(row["tokens_per_s"] is None and bool(MEMORY.search(row["problem"] or "")) for _, row in rows)
    lines.append(f"- {short or 'No'} cell{'s' if short != 1 else ''} ran out of memory.")
    return lines


def device(data: dict[str, Any]) -> str:
    """The card's name where the result has it, else the engine's."""
    gpu = data.get("gpu") or data.get("peak") or {}
    if isinstance(gpu, dict):
        gpu = gpu.get("name") or gpu.get("gpu") or gpu.get("device")
    return gpu or data.get("device") or "–"


def measured() -> list[str]:
    """What bench/results/ has from machines of the project's own, of other forms: a row each, linked."""
    rows = []
    for path in sorted(RESULTS.glob("*.json")):
        data = json.loads(path.read_text("utf-8"))
        m = data["machine"]
        rows.append(
            f"| [{path.stem}](../bench/results/{path.name}) | {m['cpu']}, {m['cores']} cores | {device(data)} | "
            f"{data['date'][:10]} | `{data['command']}` |"
        )
    return ["| result | processor | device | date | command |", "|" + " --- |" * 5, *rows]


def page() -> str:
    found = machines()
    lines = [
        "# Benchmarks by machine",
        "",
        "Made by `python bench/community.py` from [benchmarks/community](../benchmarks/community/README.md), where",
        "yours is welcome, and from bench/results. Figures are medians of at least three rounds. `OOM`: more memory",
        "was needed than there was.",
        "",
        "## Hardware",
        "",
        *hardware(found),
        "",
        "## Results",
        "",
    ]
    for title, wanted, form in SECTIONS:
        lines += section(title, wanted, form, found)
    lines += [
        "## Key findings",
        "",
        *findings(found),
        "",
        OWN,
        "",
        "Each is one command with a result of its own form; the pages of docs/ quote them.",
        "",
        *measured(),
    ]
    return "\n".join(lines) + "\n"


def main(arguments: Iterable[str]) -> int:
    wrong = {folder.name: said for folder in sorted(COMMUNITY.iterdir()) if folder.is_dir() and (said := check(folder))}
    for name, said in wrong.items():
        print("\n".join(f"benchmarks/community/{name}: {sentence}" for sentence in said))
    if wrong:
        return 1
    made = page()
    if "--check" in arguments:
        # the list of the project's own results may lag behind a new one; the machines' figures may not
        own = PAGE.read_text("utf-8").partition(OWN)[0] if PAGE.is_file() else ""
        differs = own != made.partition(OWN)[0]
        print("docs/BENCHMARKS.md differs from what is measured" if differs else "all good")
        return int(differs)
    PAGE.write_text(made, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
