"""Serving SmolLM2: one stream beside llama.cpp's own server, many streams over several adapters, and the first token of
a prompt that is kept.

    python bench/serve.py [--only stream,together,cached] [--backends llama.cpp,anytune]
"""

from __future__ import annotations

import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import common
import httpx

from tests.serve.server import Server
from tests.support.models import smollm2

PARTS = ("stream", "together", "cached")
PROMPT = "Write a long story about a lighthouse, its keeper and the sea."
PEER = """
import os, sys
import xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel = sys.argv[1], 4096, 1
params.warmup, params.fit_params = True, False
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(sys.argv[2])
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
sys.stdin.read()
os._exit(0)
"""


def adapters(folder: Path) -> list[Path]:
    """Three of rank 16 on every linear, with values of no meaning that change what is said."""
    import numpy as np

    import anytune
    from anytune.adapter.adapter import Adapter

    made = []
    with anytune.load(smollm2(), device="numpy") as model:
        names = anytune.Lora().tensors(model.gguf, model.config.layers)
        for seed in range(3):
            rng, tensors = np.random.default_rng(seed), {}
            for name in names:
                rows, columns = model.gguf.tensors[name].shape
                tensors[name] = (
                    (rng.standard_normal((16, columns)) / columns**0.5).astype(np.float32),
                    (0.01 * rng.standard_normal((rows, 16))).astype(np.float32),
                )
            made.append(folder / f"a{seed}.gguf")
            Adapter(tensors, 16, 32.0, architecture="llama", base_sha256=model.gguf.sha256()).save(made[-1])
    return made


def streamed(client: httpx.Client, model: str, prompt: str, tokens: int) -> dict:
    """One answer of exactly so many tokens: its text, seconds to the first and from there tokens a second."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
    }
    start, times, text = time.perf_counter(), [], ""
    with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                choices = json.loads(line[6:])["choices"]
                if choices and (piece := choices[0]["delta"].get("content")):
                    times.append(time.perf_counter())
                    text += piece
    return {"text": text, "first_s": times[0] - start, "tokens_per_s": (tokens - 1) / (times[-1] - times[0])}


def started(folder: Path, backend: str, threads: int, *options: str) -> Server:
    more = ("-m", str(smollm2()), "--backend", backend, "-t", str(threads))
    return Server(folder, *more, *options, OMP_NUM_THREADS=str(threads))


def stream(folder: Path, rounds: int, threads: int, backend: str) -> dict:
    """128 tokens of one answer, ours and llama.cpp's own server (of xllamacpp), in turns."""
    peer = subprocess.Popen(
        [sys.executable, "-c", PEER, str(smollm2()), str(threads)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    ours = started(folder, backend, threads)
    found: dict[str, list[float]] = {"anytune": [], "llama.cpp": []}
    try:
        with httpx.Client(base_url=peer.stdout.readline().strip(), timeout=300) as theirs:
            for number in range(rounds + 1):
                for name, client in (("anytune", ours.http), ("llama.cpp", theirs)):
                    rate = streamed(client, "base", PROMPT, 128)["tokens_per_s"]
                    if number:
                        found[name].append(round(rate, 2))
    finally:
        ours.close()
        peer.communicate("")
    medians = {name: round(statistics.median(rates), 2) for name, rates in found.items()}
    return {"tokens_per_s": found, "median": medians, "ratio": round(medians["anytune"] / medians["llama.cpp"], 3)}


def together(folder: Path, rounds: int, threads: int, backend: str, streams: int, tokens: int) -> dict:
    """So many answers at once over the base and three adapters, and each of them alone."""
    options = [part for path in adapters(folder) for part in ("--lora", str(path))]
    ours = started(folder, backend, threads, *options, "-np", str(streams), "-c", "256")
    cases = [
        (model, f"{number}. {PROMPT}")
        for number, model in zip(range(streams), itertools.cycle(("base:a0", "base:a1", "base:a2")))
    ]
    try:
        ours.http.timeout = 600

        def ask(case: tuple[str, str]) -> str:
            return streamed(ours.http, *case, tokens)["text"]

        start = time.perf_counter()
        alone = [ask(case) for case in cases]
        seconds_alone = time.perf_counter() - start
        rates, same = [], 0
        for _ in range(rounds):
            with ThreadPoolExecutor(streams) as pool:
                start = time.perf_counter()
                made = list(pool.map(ask, cases))
                rates.append(round(streams * tokens / (time.perf_counter() - start), 2))
            same += sum(a == b for a, b in zip(alone, made))
    finally:
        ours.close()
    return {
        "streams": streams,
        "adapters": 3,
        "tokens": tokens,
        "different_answers": len(set(alone)),
        "tokens_per_s": rates,
        "median": round(statistics.median(rates), 2),
        "one_after_another_tokens_per_s": round(streams * tokens / seconds_alone, 2),
        "equal_to_alone": same,
        "of": streams * rounds,
    }


def cached(folder: Path, rounds: int, threads: int, backend: str) -> dict:
    """Seconds to the first token of a prompt of some 700 tokens: its slot holds another one, or this one."""
    ours = started(folder, backend, threads, "-np", "1")
    fresh, kept = [], []
    try:
        for number in range(rounds + 1):
            prompt = f"{number} " + 50 * PROMPT
            first, again = (streamed(ours.http, "base", prompt, 4)["first_s"] for _ in range(2))
            if number:
                fresh.append(round(first, 4))
                kept.append(round(again, 4))
        usage = ours.client.chat.completions.create(
            model="base", messages=[{"role": "user", "content": prompt}], max_tokens=1
        ).usage
    finally:
        ours.close()
    return {
        "prompt_tokens": usage.prompt_tokens,
        "fresh_s": fresh,
        "kept_s": kept,
        "median_fresh_s": statistics.median(fresh),
        "median_kept_s": statistics.median(kept),
    }


def main() -> None:
    made = common.parser(__doc__, 3)
    made.add_argument("--only", default=",".join(PARTS))
    made.add_argument("--backends", default="llama.cpp,anytune")
    made.add_argument("--streams", type=int, default=32)
    made.add_argument("--tokens", type=int, default=32)
    options = made.parse_args()
    before, kept = common.machine(), common.RESULTS / "serve.json"
    found = json.loads(kept.read_text())["backends"] if kept.exists() else {}  # a backend can be measured by itself
    for backend in options.backends.split(","):
        found.setdefault(backend, {})
        for part in options.only.split(","):
            with tempfile.TemporaryDirectory() as name:
                more = (options.streams, options.tokens) if part == "together" else ()
                found[backend][part] = globals()[part](Path(name), options.rounds, 2, backend, *more)
                print(backend, part, found[backend][part], file=sys.stderr)
    common.save("serve", options, before, backends=found, model="smollm2-135m, Q4_1")


if __name__ == "__main__":
    main()
