"""What rounding takes from a merged file, by type: `export merge --dry-run`."""

from __future__ import annotations

import json

from adaptations.shared import EMAILS, Bench, command

TYPES = "same,Q4_K_M,Q5_K_M,Q6_K,Q8_0,BF16,F16,F32"


def run(b: Bench) -> None:
    b.trained("wren", EMAILS / "train.jsonl", 40)
    if b.missing("merged"):
        words = ["export", "merge", "-m", b.path, "-t", b.args.threads, "--lora", b.folder / "wren.gguf", "--dry-run"]
        b.keep("merged", **json.loads(command(*words, "--candidates", TYPES, "-f", b.as_text("heldout"), "--json")))
