"""The H200's results in the form of `anytune bench`, for benchmarks/community/nvidia-h200: the rounds that they kept.

python bench/converted.py    # bench.json and log.txt from bench/results/train_gpu.json and decode_gpu.json

What the scripts did not keep (a hash: their weights are random) is null, and a row without three rounds is left out.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS, FOLDER = ROOT / "bench" / "results", ROOT / "benchmarks" / "community" / "nvidia-h200"
NAMES, LEAST, GIB = ("train_gpu", "decode_gpu"), 3, 1 << 30


def training(data: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for name, found in data["anytune"].items():
        if len(found.get("rounds_tokens_per_s") or ()) >= LEAST:
            more = [f"--memory {found['memory']}"] if found["memory"] else []
            more += ["--dtype fp8"] if found["dtype"] == "fp8" else []
            examples, tokens = map(int, found["shape"].split("x"))
            yield {
                "model": model(found["blocks"]),
                "test": ", ".join([f"train {found['shape']}", *more]),
                "kind": "train",
                "examples": examples,
                "tokens": tokens,
                "peak_bytes": round(found["peak_gib"] * GIB),
                "estimate_bytes": round(found["estimate_gib"] * GIB),
                "rounds": found["rounds_tokens_per_s"],
                "taken_from": f"train_gpu.json, {name}",
            }


def decoding(data: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A round is one token for each sequence, in milliseconds; with an adapter it is another test than the table's."""
    for name, found in data["anytune"].items():
        if len(found.get("rounds_ms") or ()) >= LEAST and not found["rank"] and "likeliest" not in name:
            yield {
                "model": model(name.split(",")[0]),
                "test": f"tg x{found['batch']}" if found["batch"] > 1 else "tg",
                "kind": "generate",
                "examples": found["batch"],
                "tokens": 1,
                "peak_bytes": round(found["peak_gib"] * GIB),
                "estimate_bytes": None,
                "rounds": [round(1000 * found["batch"] / ms, 3) for ms in found["rounds_ms"]],
                "taken_from": f"decode_gpu.json, {name}",
            }


def model(kind: str) -> str:
    return f"qwen3-1.7b-shape-{kind.lower()}.gguf"


def document() -> dict[str, Any]:
    results = {name: json.loads((RESULTS / f"{name}.json").read_text("utf-8")) for name in NAMES}
    first = results["train_gpu"]
    rows = [*training(first), *decoding(results["decode_gpu"])]
    for row in rows:
        rates = row["rounds"]
        row |= {"device": "cuda", "asked_device": "cuda", "hardware": first["gpu"]["gpu"], "threads": None}
        row |= {"tokens_per_s": statistics.median(rates), "min": min(rates), "max": max(rates), "problem": None}
    kinds = sorted({row["model"] for row in rows})
    return {
        "format": "anytune-bench",
        "version": 1,
        "command": "; ".join(data["command"] for data in results.values()),
        "converted_from": [f"bench/results/{name}.json" for name in NAMES],
        "date": first["date"],
        "machine": first["machine"],
        "versions": first["versions"] | {"anytune": f"commit {first['commit']}"},
        "settings": {"rank": first["rank"]},
        "models": [
            {"file": name, "sha256": None, "architecture": "qwen3", "type": name[17:-5].upper()} for name in kinds
        ],
        "results": rows,
        "interrupted": False,
    }


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "bench.json").write_text(json.dumps(document(), indent=1, ensure_ascii=False) + "\n", "utf-8")
    with open(FOLDER / "log.txt", "w", encoding="utf-8") as log:
        for name in NAMES:
            text = (RESULTS / f"{name}.json").read_text("utf-8")
            log.write(f"$ {json.loads(text)['command']}\n{text}\n")


if __name__ == "__main__":
    main()
