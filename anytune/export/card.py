"""An adapter's README: its base, data, settings, scores and licence.

What the adapter, its base and its run's folder say is written; what they do not say is left to the author, marked TODO.
Of the data only file names and counts are named, never folders.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from anytune.adapter.adapter import Adapter
from anytune.errors import UserError
from anytune.files import read_json
from anytune.gguf import GGUF

LARGEST = 64 << 20  # bytes of a report or of settings
SETTINGS = {
    **{"lr": "learning rate", "scheduler": "schedule", "warmup_ratio": "warm-up, fraction of steps"},
    **{"epochs": "epochs", "max_steps": "maximum steps", "context": "longest example, tokens"},
    **{"ubatch": "tokens per micro-batch", "batch": "tokens per step", "weight_decay": "weight decay"},
    **{"max_grad_norm": "gradient norm clipped to", "seed": "seed"},
}
TODO = "TODO"


def card(
    base: GGUF,
    adapter: Adapter,
    path: Path,
    *,
    run: Path | None = None,
    reports: Sequence[Path] = (),
    license: str | None = None,
) -> str:
    """The README as Markdown.

    path: of the adapter, a file or a peft folder; run: its run's folder; reports: JSON files of `anytune evaluate … -o`
    and `anytune evaluate score --json`. license: of the adapter; None: the base's, or TODO. Raises UserError.
    """
    facts = {} if run is None else read_json(run / "settings.json", LARGEST)
    meta = base.metadata
    theirs = meta.get("general.license")
    name = str(meta.get("general.name") or base.path.stem)
    licence = license or (str(theirs) if theirs else TODO)
    front = ["---", f"license: {licence}", "tags: [lora, gguf, anytune]", f"base_model: {name}", "---"]
    lines = [*front, "", f"# {path.stem}", "", f"A LoRA adapter for {name}, trained with anytune.", ""]
    lines += ["## Base and adapter", "", *_table(_files(base, adapter, path, name, theirs))]
    lines += ["", "## Data", "", *_data(facts)]
    lines += ["", "## Training", "", *_training(facts, run)]
    lines += ["", "## Scores", "", *_scores(reports)]
    lines += [
        "",
        "## Use",
        "",
        *_use(base, path),
        "",
        "## Licence",
        "",
        licence + (f" (the base's: {theirs})." if theirs and license and license != theirs else "."),
    ]
    return "\n".join(lines) + "\n"


def _files(base: GGUF, adapter: Adapter, path: Path, name: str, licence: Any) -> list[tuple[str, str]]:
    own = base.sha256()
    rows = [
        ("base", f"{name}, `{base.path.name}`"),
        ("SHA-256 of the base", f"`{own}`"),
        ("base's licence", str(licence) if licence else TODO),
    ]
    if adapter.base_sha256 and adapter.base_sha256 != own:
        rows.append(("trained on another file", f"`{adapter.base_sha256}`"))
    file = path if path.is_file() else path / "adapter_model.safetensors"
    modules = sorted({tensor.removesuffix(".weight").rpartition(".")[2] for tensor in adapter.tensors})
    scale = f"alpha {adapter.alpha:g}{', rsLoRA' if adapter.rslora else ''}"
    rows += [
        ("adapter", f"`{file.name}`, rank {adapter.rank}, {scale}, {adapter.n_parameters:,} parameters"),
        ("adapted linears", ", ".join(modules)),
    ]
    if file.is_file():
        with file.open("rb") as opened:
            rows.append(("SHA-256 of the adapter", f"`{hashlib.file_digest(opened, 'sha256').hexdigest()}`"))
    return rows


def _data(facts: Mapping[str, Any]) -> list[str]:
    report = facts.get("data_report")
    if not isinstance(report, dict):
        return [f"{TODO}: what was it trained on, where is it from, under which licence?"]
    files = facts.get("data")
    names = ", ".join(f"`{Path(str(file)).name}`" for file in (files if isinstance(files, list) else [files]))
    rows = [("files", names)]
    if facts.get("val_file"):
        rows.append(("validation", ", ".join(f"`{Path(str(file)).name}`" for file in facts["val_file"])))
    rows += [
        (label, f"{report[key]:,}")
        for key, label in (("examples", "examples"), ("tokens", "tokens"), ("loss_tokens", "of these learned"))
        if isinstance(report.get(key), int)
    ]
    rows.append(("source and licence", TODO))
    return _table(rows)


def _training(facts: Mapping[str, Any], run: Path | None) -> list[str]:
    settings = facts.get("settings")
    if run is None or not isinstance(settings, dict):
        return ["The run's folder was not given (`--run`)."]
    from anytune.train.metrics import read
    from anytune.train.timing import Timing

    rows = [
        (label, f"{settings[key]:g}" if isinstance(settings[key], float) else str(settings[key]))
        for key, label in SETTINGS.items()
        if settings.get(key) is not None
    ]
    steps = read(run / "metrics.jsonl") if (run / "metrics.jsonl").is_file() else []
    trained = [row for row in steps if row.get("loss") is not None]
    if trained:
        rows.append(("loss, first and last step", f"{trained[0]['loss']:.4f}, {trained[-1]['loss']:.4f}"))
    validated = [row["val_loss"] for row in steps if row.get("val_loss") is not None]
    if validated:
        rows.append(("validation loss, best", f"{min(validated):.4f}"))
    timing = Timing.of(trained)
    if timing is not None:
        rows.append(("time", timing.text().removeprefix("Time: ")))
    return _table(rows)


def _scores(reports: Sequence[Path]) -> list[str]:
    if not reports:
        return [f"{TODO}: `anytune evaluate` writes reports that `--scores` reads."]
    lines: list[str] = []
    for path in reports:
        facts = read_json(path, LARGEST)
        try:
            rows = _rows(facts)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError):
            rows = []
        if not rows:
            raise UserError(
                f"{path} is not a report that a card can quote: use those of anytune evaluate compare, style, "
                "biomed (-o REPORT.json) or score (--json)."
            )
        lines += [*([""] if lines else []), f"`{path.name}`:", "", *_table(rows, ("measure", "value"))]
    return lines


def _rows(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(what, value with its interval) of the reports of evaluate."""

    def three(value: Any) -> str:
        return f"{value[0]:.3f} [{value[1]:.3f}, {value[2]:.3f}]"

    rows: list[tuple[str, str]] = []
    runs = facts.get("runs")
    for name, methods in runs.items() if isinstance(runs, dict) else ():
        for method, found in methods.items():
            low, high = found["interval"]
            rows.append(
                (
                    f"accuracy by {method}, {name}",
                    f"{found['accuracy']:.3f} [{low:.3f}, {high:.3f}], {found['questions']} questions",
                )
            )
    measures = facts.get("to_reference")
    for measure, sides in measures.items() if isinstance(measures, dict) else ():
        rows += [
            (f"{measure} to the references, {side}", three(value))
            for side, value in sides.items()
            if isinstance(value, list) and len(value) == 3 and None not in value
        ]
    if isinstance(facts.get("accuracy"), float) and "jaccard" in facts:
        rows += [(name, f"{facts[name]:.3f}") for name in ("accuracy", "cosine", "jaccard")]
    return rows


def _use(base: GGUF, path: Path) -> list[str]:
    adapter = path.name
    lines = [
        f'anytune generate -m {base.path.name} --lora {adapter} -p "…"',
        f"anytune verify -m {base.path.name} --lora {adapter}",
    ]
    if path.suffix == ".gguf":
        lines.append(f"llama-server -m {base.path.name} --lora {adapter}")
    return ["```sh", *lines, "```"]


def _table(rows: Sequence[tuple[str, str]], head: tuple[str, str] = ("", "")) -> list[str]:
    cells = [(a.replace("|", "\\|"), " ".join(b.split()).replace("|", "\\|")) for a, b in rows]
    return [f"| {head[0]} | {head[1]} |", "| --- | --- |", *(f"| {a} | {b} |" for a, b in cells)]
