"""Real models on this machine: llama.cpp's agreement, 50 steps, and biomedical accuracy before and after.

    python bench/real_models.py                      # those of the published set that are in this machine's stores
    python bench/real_models.py -m one.gguf -m two   # and any others, by file or name

The published set is Qwen3 0.6B, 1.7B and 4B, Gemma 3 1B and 4B, and TinyLlama 1.1B; it is looked for where
`anytune models` looks, and told by architecture and size. What is not there is listed as not tried. Each model trains
on examples/biomedical and answers its 33 test questions. What is done is kept in --work, so that the command may be
stopped and goes on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import common

from anytune.benchmark.document import described
from anytune.hub.catalog import models

SET = {  # name -> (architecture, parameters at least, at most); with an output matrix of its own a model has more
    "Qwen3 0.6B": ("qwen3", 0.5e9, 0.8e9),
    "Qwen3 1.7B": ("qwen3", 1.6e9, 2.1e9),
    "Qwen3 4B": ("qwen3", 3.8e9, 4.5e9),
    "Gemma 3 1B": ("gemma3", 0.9e9, 1.4e9),
    "Gemma 3 4B": ("gemma3", 3.7e9, 4.7e9),
    "TinyLlama 1.1B": ("llama", 1.05e9, 1.15e9),
}
DATA = common.ROOT / "examples" / "biomedical"
STEPS, TOKENS, RATE = 50, 512, "5e-4"

options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
options.add_argument("-m", "--model", action="append", default=[], metavar="FILE", help="another model; repeatable")
options.add_argument("--threads", type=int, default=2)
options.add_argument("--device", default="auto")
options.add_argument("--no-save", action="store_true", help="print only; leave bench/results alone")
options.add_argument("--work", type=Path, default=Path("runs/real_models"))


def found(asked: list[str]) -> tuple[dict[str, Path], list[str]]:
    """(name -> file of what is here, the names of the published set that are not)."""
    rows = [row for row in models() if row.facts.reason is None]
    here: dict[str, Path] = {}
    for name, (architecture, low, high) in SET.items():
        fits = [r for r in rows if r.facts.architecture == architecture and low <= r.facts.parameters <= high]
        if fits:
            here[name] = min(fits, key=lambda row: row.bytes).stored.path
    others = [common.model_file(name) for name in asked]
    here |= {path.stem: path for path in others if path not in here.values()}
    return here, [name for name in SET if name not in here]


def told(words: list[str], args) -> dict[str, Any]:
    """What a command of the program says with --json, in a process of its own."""
    done = subprocess.run(
        common.anytune(*words, "--json"),
        env=common.environment(args.threads),
        cwd=args.work,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    try:
        return json.loads(done.stdout)  # verify says with exit code 1 that the two differ
    except ValueError:
        raise SystemExit(f"anytune {' '.join(words)} ended with exit code {done.returncode}") from None


def tried(name: str, path: Path, args) -> dict[str, Any]:
    """One model's figures; measured unless they are there."""
    kept = args.work / f"{path.stem}.json"
    if kept.exists():
        return json.loads(kept.read_text())
    print(name, file=sys.stderr, flush=True)
    adapter = args.work / f"{path.stem}-adapter.gguf"
    data = ["-f", str(DATA / "train.jsonl"), "-c", str(TOKENS), "-ub", str(TOKENS), "-b", str(TOKENS)]
    schedule = ["--max-steps", str(STEPS), "--learning-rate", RATE, "--num-epochs", "4"]
    run = ["--run-dir", str(args.work / path.stem), "-o", str(adapter), "--force"]
    train = told(["train", "-m", str(path), *data, *schedule, *run, "--device", args.device], args)
    verify = told(["verify", "-m", str(path), "--lora", str(adapter)], args)
    test = ["-f", str(DATA / "test.jsonl"), "-n", "4"]
    score = told(["evaluate", "biomed", "-m", str(path), "--lora", f"adapter={adapter}", *test], args)
    rows = [json.loads(line) for line in (args.work / path.stem / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if row.get("loss") is not None]
    facts = {
        "name": name,
        "model": described(path),
        "verify": {key: verify[key] for key in ("ok", "base", "with_adapter", "change")},
        "train": {"device": args.device, "steps": train["step"], "losses": losses, "timing": train["timing"]},
        "accuracy": {side: score["runs"][side] for side in ("base", "adapter")},
        "questions": score["questions"],
        "majority": score["majority"],
        "comparisons": score["comparisons"],
    }
    kept.write_text(json.dumps(facts) + "\n")
    return facts


def main() -> None:
    args = options.parse_args()
    args.work = args.work.resolve()
    args.work.mkdir(parents=True, exist_ok=True)
    before = common.machine()
    here, missing = found(args.model)
    if not here:
        raise SystemExit(
            f"None of {', '.join(SET)} is on this machine: `anytune models` lists what is; -m names others."
        )
    results = [tried(name, path, args) for name, path in here.items()]
    settings = {"steps": STEPS, "tokens": TOKENS, "lr": float(RATE), "data": "examples/biomedical/train.jsonl"}
    common.save("real_models", args, before, settings=settings, models=results, not_tried=missing)


if __name__ == "__main__":
    main()
