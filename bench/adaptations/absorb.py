"""An adapter that holds what rounding takes from a merged file: `export merge --absorb`, fitted and by QERA."""

from __future__ import annotations

import json
import resource

import common
from adaptations.shared import EMAILS, Bench, command


def run(b: Bench) -> None:
    b.trained("wren", EMAILS / "train.jsonl", 40)
    held, train = b.as_text("heldout"), b.as_text("train")
    for name, way in {"fitted layer by layer": "auto", "QERA-exact": "exact", "QERA-approx": "approx"}.items():
        if b.missing(name):
            words = ["export", "merge", "-m", b.path, "-t", b.args.threads, "--lora", b.folder / "wren.gguf"]
            words += ["-o", b.folder / "merged.gguf", "--type", "Q3_K_M", "--absorb", 32, "--qera", way]
            words += ["-f", held, "--calibration", train, "--no-verify", "--force", "--json"]
            began = resource.getrusage(resource.RUSAGE_CHILDREN)
            facts = json.loads(command(*words))
            ended = resource.getrusage(resource.RUSAGE_CHILDREN)
            kept = b.folder / "merged-residual.gguf"
            b.keep(
                name,
                cpu_seconds=ended.ru_utime + ended.ru_stime - began.ru_utime - began.ru_stime,
                mib=kept.stat().st_size / common.MIB,
                **{key: facts["residual"][key] for key in ("kl", "same_top")},
                merged={key: facts["taken"][key] for key in ("kl", "same_top", "bytes") if key in facts["taken"]},
            )
