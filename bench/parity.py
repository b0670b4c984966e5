"""One training on every engine and in peft, scored by the answers on one test set; and a judge between them.

    python bench/parity.py --work W --devices numpy,cpu-bf16,cpu-torch,webgpu,peft
    python bench/parity.py --work W --devices cuda --train-only    # elsewhere; bring W/cuda.* back to the others

The data is examples/biomedical: the question as the prompt, the answer with the conclusion's first sentence as the
completion. All train the same tokens in the same steps at the same rates; only what computes differs (peft starts its
adapter in its own way). Each side is kept in --work when it is done, so the command may be stopped and goes on, and an
adapter that another machine trained is scored like the others. A device that cannot train here, and has not been
trained on elsewhere, is listed with its reason.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import common

import anytune
from anytune.adapter.adapter import Adapter
from anytune.benchmark.child import hardware
from anytune.engine.probe import cpu_name
from anytune.errors import UserError
from anytune.evaluation.biomed import answer_in
from anytune.evaluation.compare import BASE, compare, judged
from anytune.evaluation.kept import Kept
from anytune.evaluation.local_judge import LocalJudge
from anytune.evaluation.prompts import read_prompts
from anytune.evaluation.pubmedqa import label_of
from anytune.evaluation.statistics import classification
from anytune.gguf import GGUF

LABELS = ("yes", "no", "maybe")
DATA = common.ROOT / "examples" / "biomedical" / "text"
RATE, EPOCHS, SEED, TOKENS = 1e-3, 1, 0, 24

options = common.parser(__doc__)
options.add_argument("--devices", default="numpy,cpu-bf16,cpu-torch,cuda,webgpu,peft")
options.add_argument(
    "--judge", default="smollm2-135m", help="a GGUF file or a name: the judge between anytune and peft"
)
options.add_argument("--rows", type=int, default=128, help="of the training set")
options.add_argument("--batch", type=int, default=512, help="tokens of a step, and of the longest example")
options.add_argument("--train-only", action="store_true", help="leave the scores to another call")
options.add_argument("--work", type=Path, default=Path("runs/parity"))


def pairs(name: str, folder: Path, count: int | None = None) -> Path:
    """The first text rows as prompt and completion."""
    path = folder / f"{name}.jsonl"
    with open(path, "w", encoding="utf-8") as file:
        for line in (DATA / f"{name}.jsonl").read_text("utf-8").removesuffix("\n").split("\n")[:count]:
            question, answer = json.loads(line)["text"].split("\nA: ")
            file.write(json.dumps({"prompt": question.removeprefix("Q: "), "completion": answer}) + "\n")
    return path


def trained(device: str, model: Path, data: Path, args) -> dict:
    """What training one side took; trained unless it is there."""
    made = args.work / f"{device}.json"
    if made.exists():
        return json.loads(made.read_text())
    begun = time.perf_counter()
    facts = (peft_side if device == "peft" else engine_side)(device, model, data, args)
    facts |= {"seconds": round(time.perf_counter() - begun, 1)}
    made.write_text(json.dumps(facts) + "\n")
    return facts


def peft_side(device: str, model: Path, data: Path, args) -> dict:
    settings = {
        "seed": SEED,
        "epochs": EPOCHS,
        "lr": RATE,
        "batch": args.batch,
        "context": args.batch,
        "threads": args.threads,
    }
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    found = common.run_once(
        ["bench/peers/peft_train.py", str(model), str(data), "--output", str(args.work / "peft"), *words],
        common.environment(args.threads, OMP_WAIT_POLICY="PASSIVE"),
    )
    with GGUF.open(model) as gguf:
        Adapter.load(args.work / "peft", gguf=gguf).save(args.work / "peft.gguf")
    return {"hardware": cpu_name(), "steps": found.get("steps"), "losses": found.get("losses")}


def engine_side(device: str, model: Path, data: Path, args) -> dict:
    loaded = anytune.load(model, device=device, threads=args.threads)
    run = anytune.finetune(
        loaded,
        data,
        lora=anytune.Lora(rank=16, alpha=32.0, seed=SEED),
        seed=SEED,
        lr=RATE,
        epochs=EPOCHS,
        context=args.batch,
        ubatch=args.batch,
        batch=args.batch,
        device=device,
        run_dir=args.work / f"run-{device}",
        checkpoint_save_steps=1 if device == "webgpu" else 100,  # a software device takes minutes a step
        resume_from="auto",
    )
    run.adapter.save(args.work / f"{device}.gguf")
    rows = [json.loads(line) for line in (Path(run.run_dir) / "metrics.jsonl").read_text().splitlines()]
    losses = [round(row["loss"], 5) for row in rows]
    return {"hardware": hardware(loaded.engine), "steps": run.step, "losses": losses}


def remember(judge: LocalJudge, path: Path) -> LocalJudge:
    """The judge with its verdicts kept in a file, a line each."""
    known = dict(json.loads(line) for line in path.read_text().splitlines()) if path.exists() else {}
    ask = judge.ask

    def asked(*texts: str | None) -> str:
        key = hashlib.sha256(json.dumps([judge.name, *texts]).encode()).hexdigest()
        if key not in known:
            known[key] = ask(*texts)
            with open(path, "a") as file:
                file.write(json.dumps([key, known[key]]) + "\n")
        return known[key]

    judge.ask = asked
    return judge


def scored(loaded, adapters: dict[str, Adapter], prompts: list, args) -> Iterator[tuple[dict, dict]]:
    """(side -> its measures, the judge's words) of base and adapters: at first with its verdicts between anytune and
    peft, then with those between each of them and the base, too."""
    ours = next(iter(adapters))
    judge = LocalJudge(anytune.load(common.model_file(args.judge), device="auto", threads=args.threads))
    judge, pair = remember(judge, args.work / "verdicts.jsonl"), (ours, "peft")
    with Kept(args.work / "scores") as kept:
        facts = compare(loaded, prompts, adapters, max_tokens=TOKENS, judge=judge, pair=pair, kept=kept)
        truth = [LABELS.index(label_of(prompt.reference.split(".")[0])) for prompt in prompts]
        sides = {}
        for name in (BASE, *adapters):
            figures = classification(truth, [answer_in(item["answers"][name]) for item in facts["items"]], LABELS)
            measures = {m: facts["to_reference"][m][name] for m in ("cosine", "Jaccard", "chrF", "ROUGE-L")}
            sides[name] = {
                **measures,
                **{key: figures[key] for key in ("accuracy", "interval", "unanswered")},
                "same_answers_as_first": sum(i["answers"][name] == i["answers"][ours] for i in facts["items"]),
            }
        words = {"judge": judge.name, "pair": list(pair), **facts["judge"]["adapters"][ours], "against_base": {}}
        yield sides, words
        words["against_base"] = judged(facts["items"], [(name, BASE) for name in pair], judge, None)["adapters"]
        yield sides, words


def main() -> None:
    args = options.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    before, model = common.machine(), common.model_file(args.model)
    data, test = pairs("train", args.work, args.rows), pairs("test", args.work)
    training, missing = {}, {}
    for device in args.devices.split(","):
        print(device, file=sys.stderr, flush=True)
        try:
            training[device] = trained(device, model, data, args)
        except UserError as error:
            missing[device] = str(error)
    if args.train_only:
        return
    if "peft" not in training or len(training) < 2:
        raise SystemExit("Nothing to set side by side: train peft and an engine, as in --devices numpy,peft")
    loaded = anytune.load(model, device="numpy", threads=args.threads)
    adapters = {name: Adapter.load(args.work / f"{name}.gguf", gguf=loaded.gguf) for name in training}
    prompts = read_prompts(test)
    settings = {"rows": args.rows, "lr": RATE, "epochs": EPOCHS, "batch": args.batch, "rank": 16, "seed": SEED}
    for sides, words in scored(loaded, adapters, prompts, args):
        facts = {
            name: side | ({"training": training[name]} if name in training else {}) for name, side in sides.items()
        }
        facts = {"first": words["pair"][0], "judge": words, "missing": missing, "sides": facts}
        facts |= {"questions": len(prompts), "tokens": TOKENS, "settings": settings}
        common.save("parity", args, before, model=model.name, **facts)


if __name__ == "__main__":
    main()
