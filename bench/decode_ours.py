"""Contestant: anytune decodes greedily after a prompt (one whole answer a turn)."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import common

job = json.loads(sys.argv[1])

import anytune  # noqa: E402

model = anytune.load(job["model"], device="numpy", threads=job["threads"])


def turn() -> dict:
    decoder = model.decoder(batch=1, context=len(job["prompt"]) + job["tokens"])
    start = time.perf_counter()
    logits = decoder.feed([job["prompt"]])
    ids = [int(logits[0].argmax())]
    prompt_done = time.perf_counter()
    while len(ids) < job["tokens"]:
        ids.append(int(decoder.feed([ids[-1:]])[0].argmax()))
    end = time.perf_counter()
    return {
        "tokens_per_s": round((len(ids) - 1) / (end - prompt_done), 2),
        "prompt_tokens_per_s": round(len(job["prompt"]) / (prompt_done - start), 2),
        "text": model.tokenizer.decode(ids, skip_special=False),
    }


peak = common.Peak()
turn()
common.serve({"who": "anytune", "engine": model.engine.name}, turn, peak.figures)
