"""One training on every engine and in peft, scored by the answers on one test set; and a judge between two of them.

    python bench/parity.py --devices numpy,cpu-bf16,cpu-torch
    python bench/parity.py --devices cuda,webgpu          # on a machine that has them

The data is examples/biomedical: the question as the prompt, the answer with the conclusion's first sentence as the
completion. All train the same tokens in the same steps at the same rates; only what computes differs (peft starts its
adapter in its own way). Each side is kept in --work when it is done, so the command may be stopped and goes on.
Devices that this machine lacks are listed as such, and sides of an earlier run on another machine stay in the result.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import common

import anytune
from anytune.adapter.adapter import Adapter
from anytune.errors import UserError
from anytune.evaluation.compare import compare
from anytune.evaluation.local_judge import LocalJudge
from anytune.evaluation.prompts import read_prompts
from anytune.evaluation.pubmedqa import label_of
from anytune.evaluation.biomed import answer_in
from anytune.evaluation.statistics import classification

LABELS = ("yes", "no", "maybe")
DATA = common.ROOT / "examples" / "biomedical" / "text"
ROWS, RATE, EPOCHS, BATCH, SEED, TOKENS = 128, 1e-3, 1, 512, 0, 24

options = common.parser(__doc__)
options.add_argument("--devices", default="numpy,cpu-bf16,cpu-torch")
options.add_argument(
    "--judge", default="smollm2-135m", help="a GGUF file or a name: the judge between anytune and peft"
)
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


def train(device: str, model: Path, data: Path, args) -> dict:
    """Train one side unless it is there; what it took."""
    made = args.work / f"{device}.json"
    if made.exists():
        return json.loads(made.read_text())
    begun, cpu = time.perf_counter(), time.process_time()
    if device == "peft":
        found = common.run_once(
            [
                "bench/peers/peft_train.py",
                str(model),
                str(data),
                "--output",
                str(args.work / "peft"),
                "--seed",
                str(SEED),
                "--epochs",
                str(EPOCHS),
                "--lr",
                str(RATE),
                "--batch",
                str(BATCH),
                "--threads",
                str(args.threads),
            ],
            common.environment(args.threads, OMP_WAIT_POLICY="PASSIVE"),
        )
        facts = {"steps": found.get("steps"), "losses": found.get("losses")}
        loaded = anytune.load(model, device="numpy", threads=args.threads)
        Adapter.load(args.work / "peft", gguf=loaded.gguf).save(args.work / "peft.gguf")
    else:
        loaded = anytune.load(model, device=device, threads=args.threads)
        rows: list[dict] = []
        run = anytune.finetune(
            loaded,
            data,
            lora=anytune.Lora(rank=16, alpha=32.0, seed=SEED),
            seed=SEED,
            lr=RATE,
            epochs=EPOCHS,
            context=BATCH,
            ubatch=BATCH,
            batch=BATCH,
            device=device,
            progress=rows.append,
            run_dir=str(args.work / f"{device}-{time.time_ns()}"),
        )
        run.adapter.save(args.work / f"{device}.gguf")
        losses = [round(row["loss"], 5) for row in rows if row.get("loss") is not None]
        facts = {"steps": run.step, "losses": losses}
    facts |= {"seconds": round(time.perf_counter() - begun, 1), "cpu_seconds": round(time.process_time() - cpu, 1)}
    made.write_text(json.dumps(facts))
    return facts


def main() -> None:
    args = options.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    before, model = common.machine(), common.model_file(args.model)
    data, test = pairs("train", args.work, ROWS), pairs("test", args.work)
    trained, missing = {}, {}
    for device in [*args.devices.split(","), "peft"]:
        print(device, file=sys.stderr, flush=True)
        try:
            trained[device] = train(device, model, data, args)
        except UserError as error:
            missing[device] = str(error)
    if args.train_only:
        return
    loaded = anytune.load(model, device="numpy", threads=args.threads)
    adapters = {name: Adapter.load(args.work / f"{name}.gguf", gguf=loaded.gguf) for name in trained}
    prompts = read_prompts(test)
    ours = next(iter(adapters))
    judge = LocalJudge(anytune.load(common.model_file(args.judge), device="numpy", threads=args.threads))
    facts = compare(loaded, prompts, adapters, name=test.name, max_tokens=TOKENS, judge=judge, pair=(ours, "peft"))
    truth = [LABELS.index(label_of(prompt.reference.split(".")[0])) for prompt in prompts]
    sides = {}
    for name in ("base", *adapters):
        said = [answer_in(item["answers"][name]) for item in facts["items"]]
        figures = classification(truth, said, LABELS)
        sides[name] = {
            **{measure: facts["to_reference"][measure][name] for measure in ("cosine", "Jaccard", "chrF", "ROUGE-L")},
            **{key: figures[key] for key in ("accuracy", "interval", "unanswered")},
            **({"training": trained[name]} if name in trained else {}),
            "same_answers_as_first": sum(i["answers"][name] == i["answers"][ours] for i in facts["items"]),
        }
    verdicts = facts["judge"]["adapters"][ours]
    common.save(
        "parity",
        args,
        before,
        model=model.name,
        questions=len(prompts),
        tokens=TOKENS,
        settings={"rows": ROWS, "lr": RATE, "epochs": EPOCHS, "batch": BATCH, "rank": 16, "seed": SEED},
        first=ours,
        judge={"judge": facts["judge"]["judge"], "pair": [ours, "peft"], **verdicts},
        missing=missing,
        sides=sides,
    )


if __name__ == "__main__":
    main()
