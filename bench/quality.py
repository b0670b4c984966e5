"""Quality: what anytune and transformers + peft make of the same models, data and settings, by the answers afterwards.

    python bench/quality.py --pubmedqa FOLDER --reference FOLDER

Two tasks. `official`: PubMedQA's 500 test questions, reasoning-free (question and conclusion), trained on 450 of the
other 500. `reference`: 33 questions alone, balanced by class, trained on 264 such rows. FOLDERs hold PubMedQA's
ori_pqal.json and test_ground_truth.json, and train.jsonl and test.jsonl of rows with question and label.

Both sides train on the GGUF's weights, LoRA r=16 on all linears, with the same tokens, loss mask, steps, rates and
optimizer; each starts its adapter in its own way. peft's adapter becomes a GGUF adapter, and one scorer (anytune's)
puts the questions to every adapter. Each cell (task, model, framework, seed) is kept in --work as soon as it is done
and not computed again, so the run may be stopped and continued. With --only MODEL it does that model's cells and writes
no result.
"""

from __future__ import annotations

import datetime
import json
import sys
import time
from pathlib import Path

import common

options = common.saving(__doc__)
options.add_argument("--pubmedqa", required=True, type=Path)
options.add_argument("--reference", required=True, type=Path)
options.add_argument("--models", default="smollm2-135m,gemma3-270m", help="names or GGUF files, comma-separated")
options.add_argument("--only", metavar="MODEL")
options.add_argument("--seeds", type=int, default=3)
options.add_argument("--threads", type=int, default=2)
options.add_argument("--device", default="cpu-bf16")
options.add_argument("--dtype", default="bf16", help="of the peer, see bench/peers/peft_train.py")
options.add_argument("--work", type=Path, default=Path("runs/quality"))
options.add_argument("--no-train", action="store_true", help="gather the cells that there are")
args = options.parse_args()

import anytune  # noqa: E402  (before NumPy: it chooses the BLAS kernels)
import numpy as np  # noqa: E402
from anytune.adapter.adapter import Adapter  # noqa: E402
from anytune.evaluation import biomed, pubmedqa, recipe  # noqa: E402
from anytune.evaluation.statistics import classification  # noqa: E402
from anytune.files import atomic_write  # noqa: E402
from anytune.likelihood.choices import SURE, wilson  # noqa: E402

FRAMEWORKS = ("anytune", "peft")
SETTINGS = {
    "official": {"setting": "reasoning-free", "epochs": 1, "lr": 5e-4, "batch": 512},
    "reference": {"setting": "question-only", "epochs": 2, "lr": 5e-4, "batch": 512},
}
NEW_TOKENS = 8
METHODS = ("likelihood", "generation")


def data(task: str) -> tuple[Path, list[pubmedqa.Question]]:
    """(pairs to train on, questions of the test)."""
    folder = args.work / task
    if task == "official":
        files = [args.pubmedqa / name for name in ("ori_pqal.json", "test_ground_truth.json")]
        if not (folder / "train.jsonl").exists():
            recipe.build(*files, folder, setting=SETTINGS[task]["setting"])
        return folder / "train.jsonl", pubmedqa.read_questions(*files, setting=SETTINGS[task]["setting"])
    folder.mkdir(parents=True, exist_ok=True)
    rows = pubmedqa.read_questions(args.reference / "train.jsonl")
    with atomic_write(folder / "train.jsonl", "w") as file:
        file.writelines(json.dumps({"prompt": q.prompt, "completion": q.answers[q.right]}) + "\n" for q in rows)
    return folder / "train.jsonl", pubmedqa.read_questions(args.reference / "test.jsonl")


def train(framework: str, model: Path, file: Path, task: str, seed: int, name: str) -> tuple[Path, dict]:
    """(the adapter, figures of the training)."""
    how = SETTINGS[task]
    if framework == "peft":
        made = common.run_once(
            [
                "bench/peers/peft_train.py",
                str(model),
                str(file),
                "--output",
                str(args.work / name),
                "--seed",
                str(seed),
                "--epochs",
                str(how["epochs"]),
                "--lr",
                str(how["lr"]),
                "--batch",
                str(how["batch"]),
                "--threads",
                str(args.threads),
                "--dtype",
                args.dtype,
            ],
            common.environment(args.threads, OMP_WAIT_POLICY="PASSIVE"),
        )
        return args.work / name, made
    rows: list[dict] = []
    wall, cpu = time.perf_counter(), time.process_time()
    run = anytune.finetune(
        model,
        file,
        lora=anytune.Lora(rank=16, alpha=32.0, seed=seed),
        seed=seed,
        lr=how["lr"],
        epochs=how["epochs"],
        context=512,
        ubatch=how["batch"],
        batch=how["batch"],
        device=args.device,
        threads=args.threads,
        progress=rows.append,
        run_dir=str(args.work / f"{name}-{time.time_ns()}"),
    )
    figures = {"seconds": round(time.perf_counter() - wall, 1), "cpu_seconds": round(time.process_time() - cpu, 1)}
    losses = [round(row["loss"], 5) for row in rows if row.get("loss") is not None]
    run.adapter.save(args.work / f"{name}.gguf")
    return args.work / f"{name}.gguf", {
        "who": "anytune",
        "device": args.device,
        "steps": run.step,
        **figures,
        "losses": losses,
    }


def cells(models: dict[str, Path]) -> list[tuple[str, str, str, int]]:
    """(task, model, framework, seed) in the order of their work: a small result is whole early."""
    bases = [("reference", model, "base", 0) for model in models]
    trained = {
        task: [
            (task, model, framework, seed) for seed in range(args.seeds) for model in models for framework in FRAMEWORKS
        ]
        for task in SETTINGS
    }
    return [*bases, *trained["reference"], *(("official", *base[1:]) for base in bases), *trained["official"]]


def compute(cell: tuple[str, str, str, int], path: Path, model, file: Path, questions) -> dict:
    task, name, framework, seed = cell
    begun, figures, adapter = time.perf_counter(), {}, None
    if framework != "base":
        where, figures = train(framework, path, file, task, seed, "-".join(map(str, cell)))
        adapter = Adapter.load(where, gguf=model.gguf)
        if framework == "peft":  # the adapter's own form in llama.cpp, from which it is scored
            adapter.save(args.work / f"{'-'.join(map(str, cell))}.gguf")
            adapter = Adapter.load(args.work / f"{'-'.join(map(str, cell))}.gguf", gguf=model.gguf)
    trained = time.perf_counter()
    # as in training: through the template if the model has its own, for the base and every adapter alike
    said = biomed.answer(model, questions, adapter, raw=model.template.origin == "chatml", new_tokens=NEW_TOKENS)
    truth = [q.right for q in questions]
    answers = {"likelihood": said.likeliest, "generation": said.written}
    return {
        "task": task,
        "model": name,
        "framework": framework,
        "seed": seed,
        "settings": SETTINGS[task],
        "training": figures,
        "seconds": {"training": round(trained - begun, 1), "scoring": round(time.perf_counter() - trained, 1)},
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "answers": answers,
        **{method: classification(truth, answers[method], pubmedqa.LABELS) for method in METHODS},
    }


def summary(done: list[dict], truth: dict[str, list[int]]) -> list[dict]:
    """For each task and model: the base, each framework's seeds and mean, and anytune less peft, question by question.

    interval: of a mean, Wilson's at that share of the questions; of the difference, 1.96 standard errors over questions
    of the mean over seeds.
    """
    found = []
    for task, model in dict.fromkeys((c["task"], c["model"]) for c in done):
        mine = [c for c in done if (c["task"], c["model"]) == (task, model)]
        right = np.array(truth[task])
        row: dict = {
            "task": task,
            "model": model,
            "questions": len(right),
            "majority": round(float(np.bincount(right).max() / len(right)), 4),
        }
        for method in METHODS:
            sides: dict = {}
            hits = {}
            for framework in ("base", *FRAMEWORKS):
                own = sorted((c for c in mine if c["framework"] == framework), key=lambda c: c["seed"])
                if not own:
                    continue
                hits[framework] = np.mean([np.array(c["answers"][method]) == right for c in own], axis=0)
                mean = float(hits[framework].mean())
                sides[framework] = {
                    "accuracy": round(mean, 4),
                    "interval": [round(x, 4) for x in wilson(mean * len(right), len(right))],
                    "macro_f1": round(float(np.mean([c[method]["macro_f1"] for c in own])), 4),
                    "seeds": {c["seed"]: round(c[method]["accuracy"], 4) for c in own},
                }
            if all(f in sides for f in FRAMEWORKS):
                apart = hits["anytune"] - hits["peft"]
                half = SURE * float(apart.std(ddof=1)) / len(apart) ** 0.5
                low, high = sides["peft"]["interval"]
                sides["difference"] = {
                    "mean": round(float(apart.mean()), 4),
                    "interval": [round(float(apart.mean()) + side * half, 4) for side in (-1, 1)],
                    "within": low <= sides["anytune"]["accuracy"] <= high,
                }
            row[method] = sides
        found.append(row)
    return found


def main() -> None:
    before = common.machine()
    models = {Path(name).stem: common.model_file(name) for name in args.models.split(",")}
    args.work.mkdir(parents=True, exist_ok=True)
    sets = {task: data(task) for task in SETTINGS}
    wanted, loaded = cells(models), {}
    for cell in wanted:
        file = args.work / f"{'-'.join(map(str, cell))}.json"
        if file.exists() or args.no_train or args.only not in (None, cell[1]):
            continue
        print(f"{datetime.datetime.now():%H:%M:%S} {' '.join(map(str, cell))}", file=sys.stderr, flush=True)
        if cell[1] not in loaded:
            loaded = {cell[1]: anytune.load(models[cell[1]], device=args.device, threads=args.threads)}
        result = compute(cell, models[cell[1]], loaded[cell[1]], *sets[cell[0]])
        with atomic_write(file, "w") as out:
            json.dump(result, out)
        print(
            f"  accuracy {result['likelihood']['accuracy']:.3f} by likelihood, "
            f"{result['generation']['accuracy']:.3f} written; {result['seconds']}",
            file=sys.stderr,
            flush=True,
        )
    if args.only is not None:
        return
    files = {cell: args.work / f"{'-'.join(map(str, cell))}.json" for cell in wanted}
    done = [json.loads(file.read_text("utf-8")) for file in files.values() if file.exists()]
    answers = [{m: "".join("ynm-"[a] for a in c["answers"][m]) for m in METHODS} for c in done]
    common.save(
        "quality",
        args,
        before,
        models=list(models),
        seeds=args.seeds,
        threads=args.threads,
        device=args.device,
        peer_dtype=args.dtype,
        settings=SETTINGS,
        summary=summary(done, {task: [q.right for q in questions] for task, (_, questions) in sets.items()}),
        missing=[" ".join(map(str, cell)) for cell, file in files.items() if not file.exists()],
        cells=[{**c, "answers": own} for c, own in zip(done, answers, strict=True)],
    )


if __name__ == "__main__":
    main()
