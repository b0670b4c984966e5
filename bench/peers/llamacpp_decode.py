"""Contestant: llama.cpp (through xllamacpp) decodes greedily after a prompt (one whole answer a turn)."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import common

job = json.loads(sys.argv[1])
answers = os.dup(1)  # llama.cpp logs where it likes: answers keep the real standard output
os.dup2(2, 1)
sys.stdout = os.fdopen(answers, "w")

import xllamacpp  # noqa: E402

params = xllamacpp.CommonParams()
params.model.path = job["model"]
params.n_ctx = max(512, len(job["prompt"]) + job["tokens"] + 8)
params.n_parallel, params.n_gpu_layers, params.verbosity = 1, 0, 0
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = job["threads"]
server = xllamacpp.Server(params)


def turn() -> dict:
    answer = server.handle_completions(
        {
            "prompt": job["prompt"],
            "n_predict": job["tokens"],
            "temperature": 0.0,
            "ignore_eos": True,
            "cache_prompt": False,
        }
    )
    if "error" in answer:
        raise SystemExit(f"error: {answer['error']}")
    timings = answer["timings"]
    return {
        "tokens_per_s": round(timings["predicted_per_second"], 2),
        "prompt_tokens_per_s": round(timings["prompt_per_second"], 2),
        "text": answer["choices"][0]["text"],
    }


peak = common.Peak()
turn()
common.serve({"who": "llama.cpp"}, turn, peak.figures)
os._exit(0)  # results are out: a crash while the library shuts down must not affect them
