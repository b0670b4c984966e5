"""Adapters without gradients: what they keep of their teachers, beside the plain ways, on examples that are held out.

    python bench/adapt.py prompt        # a five-shot context as an adapter: closed form, fewer data, steps, AdamW
    python bench/adapt.py adapter       # an adapter from activations alone
    python bench/adapt.py compress      # ranks 1 to 16 of an adapter beside its truncated SVD
    python bench/adapt.py repair        # Q2_K at rank 32, e-mails and text, beside QERA's
    python bench/adapt.py merge         # two adapters as one, beside linear merge, TIES and the sum of both ranks
    python bench/adapt.py absorb        # what rounding takes from a merged file: `export merge --absorb`, fit and QERA

SmolLM2-135M (or -m), examples/email; each writes bench/results/adapt_PART.json as its figures come, and continues it.
What a part needs (adapters that are trained for 40 and 25 steps, a Q2_K file) is made in --folder once.
"""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

import common

SHOTS, PERSONA = 5, "You are wren. You write e-mails in lower case, dry and short, and end with a goose report."
TEXTS = "36ea9c5"  # the commit whose docs are the ordinary text: docs/training.md guards, drift is of docs/data.md
EMAILS = common.ROOT / "examples" / "email"


def rows(part: str) -> list:
    return [json.loads(line)["messages"][-2:] for line in (EMAILS / f"{part}.jsonl").read_text("utf-8").splitlines()]


def text(name: str, folder: Path) -> str:
    """Taken from the repository's history once, so that a copy without it can be given the file."""
    path = folder / f"{TEXTS}-{name}.md"
    if not path.exists():
        command = ["git", "show", f"{TEXTS}:docs/{name}.md"]
        found = subprocess.run(command, cwd=common.ROOT, capture_output=True, text=True, check=True).stdout
        path.write_text(found, "utf-8")
    return path.read_text("utf-8")


def taken_apart(request: str) -> tuple[str, str]:
    """A second task whose answer is known: {"verb", "to", "words"} of a request."""
    words = re.findall(r"[A-Za-z']+", request)
    to = next((w for w in words[1:] if w[0].isupper() and len(w) > 2), "nobody")
    answer = {"verb": words[0].lower(), "to": to.removesuffix("'s").lower(), "words": len(words)}
    return "JSON: " + request, json.dumps(answer)


class Bench:
    def __init__(self, args):
        import anytune
        from anytune.adapt.data import Reading
        from anytune.adapt.job import Settings

        self.args, self.before, self.folder = args, common.machine(), Path(args.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.path = common.model_file(args.model)
        self.options = {"device": args.device, "dtype": args.dtype, "threads": args.threads}
        self.model = anytune.load(self.path, **self.options)
        self.reading = Reading(self.model.template, 2048)
        self.texts = {name: text(name, self.folder) for name in ("training", "data")}
        guard = self.model.tokenizer.decode(self.model.tokenizer.encode(self.texts["training"], bos=False)[:2048])
        self.settings = Settings(guard_text=guard, drift_text=self.texts["data"])
        self.file = common.RESULTS / f"adapt_{args.part}{args.suffix}.json"
        self.results = json.loads(self.file.read_text())["results"] if self.file.exists() and not args.again else {}

    def write(self, name: str, pairs: list) -> Path:
        path = self.folder / f"{name}.jsonl"
        path.write_text("\n".join(json.dumps({"messages": messages}) for messages in pairs), "utf-8")
        return path

    def keep(self, name: str, **facts) -> None:
        self.results[name] = facts
        common.save(
            "adapt",
            self.args,
            self.before,
            into=f"adapt_{self.args.part}{self.args.suffix}",
            model=self.path.name,
            device=self.args.device,
            texts=TEXTS,
            results=self.results,
        )

    def missing(self, name: str) -> bool:
        return name not in self.results

    def examples(self, name: str, pairs: list, context=None):
        from anytune.adapt.data import read

        return read(self.model, [self.write(name, pairs)], self.reading, context)[0].examples

    def trained(self, name: str, data: Path, steps: int):
        """The adapter `name`, trained if it is not there yet."""
        from anytune.adapter.adapter import Adapter

        path = self.folder / f"{name}.gguf"
        if not path.exists():
            subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "anytune",
                    "train",
                    "-m",
                    str(self.path),
                    "-f",
                    str(data),
                    "--assistant-loss-only",
                    "--lora-rank",
                    "16",
                    "--lora-alpha",
                    "32",
                    "-c",
                    "512",
                    "-ub",
                    "512",
                    "-b",
                    "1024",
                    "--max-steps",
                    str(steps),
                    "--lr",
                    "1e-3",
                    "--warmup-steps",
                    "3",
                    "--run-dir",
                    str(self.folder / f"run-{name}"),
                    "-o",
                    str(path),
                    "-q",
                ],
                check=True,
                cwd=common.ROOT,
            )
        return Adapter.load(path, gguf=self.model.gguf)

    def measured(self, task, made, plain=()) -> dict:
        from anytune.adapt.measure import measure
        from anytune.adapt.report import measured_facts

        return measured_facts(measure(self.model, task, made, dict(plain), self.settings))


def prompt(b: Bench) -> None:
    from anytune.adapter.adapter import Adapter
    from anytune.adapt.data import Context
    from anytune.adapt.fit import Recipe
    from anytune.adapt.job import Task, Teacher, as_adapter, run_fit
    from anytune.adapt.ranks import costs, spread
    from anytune.adapt.steps import gradient_steps, prompt_steps

    every, held = rows("train"), rows("heldout")
    context = Context(PERSONA, tuple(message for row in every[:SHOTS] for message in row))
    teacher = Teacher(b.model, context=context)
    tests = b.examples("heldout", held, context)

    def closed(name: str, count: int, rank: int):
        task = Task(teacher, b.examples(f"train-{count}", every[SHOTS : SHOTS + count], context), tests)
        fitted = run_fit(
            b.model, [task], Recipe(rank, 0.1, 1.3, relative=True, ranks=spread(costs(b.model), rank)), b.settings, {}
        )
        made = as_adapter(b.model, fitted.pairs)
        if b.missing(name):
            b.keep(
                name,
                tokens=sum(e.own for e in task.examples),
                rank=rank,
                cpu_seconds=fitted.cpu,
                gaps=[layer.gap for layer in fitted.layers],
                **b.measured(task, made),
                worth={name: pair.worth.tolist() for name, pair in fitted.pairs.items() if "blk.14." in name},
            )
        return task, made, fitted.cpu

    kept = b.folder / "closed-16.gguf"
    task = Task(teacher, b.examples("train-24", every[SHOTS : SHOTS + 24], context), tests)
    if b.missing("closed form, rank 16") or not kept.exists():
        closed("closed form, rank 16", 24, 16)[1].save(kept, b.model.gguf)
    made, cpu = Adapter.load(kept, gguf=b.model.gguf), b.results["closed form, rank 16"]["cpu_seconds"]
    for seed in range(b.args.seeds):
        name, alone = f"closed form and 15 steps, seed {seed}", f"AdamW alone in the same time, seed {seed}"
        if b.missing(name):
            path = b.folder / f"distilled-{seed}.gguf"  # seed 0: for adapt_worth.py
            taken = path.with_suffix(".json")
            if not taken.exists():
                stepped, took = prompt_steps(b.model, task, made, 15, b.settings, seed=seed, guard=0.65)
                stepped.save(path)
                taken.write_text(json.dumps(took))
            took = json.loads(taken.read_text())
            b.keep(name, cpu_seconds=cpu + took["cpu"], **b.measured(task, Adapter.load(path, gguf=b.model.gguf)))
        if b.missing(alone):
            seconds = b.results[name]["cpu_seconds"]
            found, took = gradient_steps(b.model, task, None, 1000, b.settings, seed=seed, rate=2e-3, seconds=seconds)
            found.save(b.folder / f"gradient-{seed}.gguf")
            b.keep(alone, cpu_seconds=took["cpu"], steps=took["steps"], **b.measured(task, found))
    if b.missing("closed form, rank 4"):
        closed("closed form, rank 4", 24, 4)
    if b.missing("closed form, 8 e-mails"):
        closed("closed form, 8 e-mails", 8, 16)


def adapter(b: Bench) -> None:
    from anytune.adapt.fit import Recipe
    from anytune.adapt.job import Task, Teacher, as_adapter, run_fit, truncated

    big = b.trained("wren", EMAILS / "train.jsonl", 40)
    task = Task(
        Teacher(b.model, big),
        b.examples("train-32", rows("train")[:32]),
        b.examples("heldout-12", rows("heldout")[:12]),
    )
    for rank in (8, 16):
        if b.missing(f"rank {rank}"):
            fitted = run_fit(b.model, [task], Recipe(rank, 1e-3), b.settings, {})
            plain = {"truncated SVD": truncated(big, rank)} if rank < 16 else {}
            b.keep(
                f"rank {rank}",
                tokens=sum(e.own for e in task.examples),
                cpu_seconds=fitted.cpu,
                **b.measured(task, as_adapter(b.model, fitted.pairs), plain),
            )


def compress(b: Bench) -> None:
    from anytune.adapt.compression import RIDGE, candidates, choose
    from anytune.adapt.job import Task, Teacher, as_adapter
    from anytune.adapt.partial import Partial
    from anytune.adapt.spectrum import factors_of

    big = b.trained("wren", EMAILS / "train.jsonl", 40)
    task = Task(
        Teacher(b.model, big),
        b.examples("train-32", rows("train")[:32]),
        b.examples("heldout-12", rows("heldout")[:12]),
    )
    factors = factors_of(big)
    worth = Partial(b.folder / "compress", {})  # measured once for all ranks
    worth.load()
    worth.pairs = {}
    for rank in (1, 2, 4, 8, 16):
        if b.missing(f"rank {rank}"):
            began = time.process_time()
            budget = rank * sum(f.cost for f in factors.values())
            ways = candidates(b.model, task, factors, budget, rank, b.settings, RIDGE, worth)
            made = {name: as_adapter(b.model, pairs) for name, pairs in ways.items()}
            taken, took = choose(b.model, task, made, b.settings), time.process_time() - began
            found = b.measured(task, made[taken], {name: way for name, way in made.items() if name != taken})
            svd = found["plain"].get("truncated SVD", found["after"])
            b.keep(
                f"rank {rank}",
                taken=taken,
                cpu_seconds=took,
                **found,
                share_of_svd=found["after"]["kl"] / max(svd["kl"], 1e-12),
            )


def repair(b: Bench) -> None:
    import anytune
    from anytune.adapt.data import text_examples
    from anytune.adapt.fit import Recipe
    from anytune.adapt.job import Task, Teacher, as_adapter, run_fit
    from anytune.adapt.measure import beside
    from anytune.adapt.ranks import costs, spread
    from anytune.adapt.repairing import plain, weights_error
    from anytune.adapt.report import distance_facts
    from anytune.export.absorb import residual, statistics

    rounded = b.folder / "q2_k.gguf"
    if not rounded.exists():
        subprocess.run(
            [sys.executable, "-m", "anytune", "quantize", str(b.path), str(rounded), "Q2_K", "--allow-requantize"],
            check=True,
            cwd=common.ROOT,
        )
    student = anytune.load(rounded, **b.options)
    teacher, train = Teacher(b.model), rows("train")[:32]
    tests = {
        "e-mails": b.examples("heldout-12", rows("heldout")[:12]),
        "text": text_examples(b.model, b.texts["data"])[:4],
    }
    mails = b.examples("train-32", train)
    error = weights_error(student, b.model, None)

    def judged(name: str, made, **facts) -> None:
        found = {
            kind: beside(student, teacher, {"it": made}, some, b.settings, "")["it"] for kind, some in tests.items()
        }
        b.keep(name, **facts, **{kind: distance_facts(distance) for kind, distance in found.items()})

    if b.missing("no adapter"):
        judged("no adapter", None)
    guard = text_examples(b.model, b.texts["training"])[:8]
    ranks = spread(costs(student), 32)
    plans = {
        "e-mails": (mails, {"ranks": ranks}),
        "e-mails, by what errors are of the stream": (mails, {"ranks": ranks, "relative": True}),
        "e-mails and text": ([*mails, *guard], {"ranks": ranks}),
        "e-mails, uniform ranks": (mails, {}),
    }
    for name, (some, options) in plans.items():
        if b.missing(f"sequential, {name}"):
            recipe = Recipe(32, 1.0, prior=error, **options)
            fitted = run_fit(student, [Task(teacher, some, ())], recipe, b.settings, {})
            made = as_adapter(student, fitted.pairs)
            judged(f"sequential, {name}", made, cpu_seconds=fitted.cpu, tokens=sum(e.own for e in some))
    if b.missing("QERA"):
        began = time.process_time()
        words = "\n\n".join(f"{one['content']}\n{two['content']}" for one, two in train) + b.texts["training"][:9000]
        inputs, way = statistics(b.model, None, words, "exact")
        judged(
            "QERA",
            residual(b.model.gguf, None, student.gguf, inputs, 32),
            way=way,
            cpu_seconds=time.process_time() - began,
        )
    if b.missing("truncated SVD"):
        names = [n for n, i in student.gguf.tensors.items() if n.startswith("blk.") and len(i.shape) == 2]
        judged("truncated SVD", as_adapter(student, plain(names, error, 32)))


def merge(b: Bench) -> None:
    from anytune.adapt.fit import Recipe
    from anytune.adapt.job import Task, Teacher, as_adapter, run_fit, truncated
    from anytune.adapt.merging import ties
    from anytune.adapter.combine import combine

    second = {
        part: [
            [
                {"role": role, "content": words}
                for role, words in zip(("user", "assistant"), taken_apart(row[0]["content"]))
            ]
            for row in rows(part)
        ]
        for part in ("train", "heldout")
    }
    one = b.trained("wren", EMAILS / "train.jsonl", 40)
    two = b.trained("json", b.write("json-train", second["train"]), 25)
    tasks = [
        Task(Teacher(b.model, one), b.examples("train-32", rows("train")[:32]), b.examples("heldout", rows("heldout"))),
        Task(
            Teacher(b.model, two),
            b.examples("json-32", second["train"][:32]),
            b.examples("json-heldout", second["heldout"]),
        ),
    ]
    both = [one, two]
    ways = {
        "linear merge, rank 16": lambda: truncated(combine([(a, 0.5) for a in both]), 16),
        "sum, rank 16": lambda: truncated(combine([(a, 1.0) for a in both]), 16),
        "TIES, rank 16": lambda: ties(both, 16),
        "sum, both ranks": lambda: combine([(a, 1.0) for a in both]),
    }
    for name, make in {"regression mean, rank 16": None, **ways}.items():
        if b.missing(name):
            began = time.process_time()
            if make is None:
                made = as_adapter(b.model, run_fit(b.model, tasks, Recipe(16, 1e-3), b.settings, {}).pairs)
            else:
                made = make()
            took = time.process_time() - began
            found = [b.measured(task, made) for task in tasks]
            b.keep(name, cpu_seconds=took, tasks=found, worst=min(f["recovered"] for f in found))


def absorb(b: Bench) -> None:
    b.trained("wren", EMAILS / "train.jsonl", 40)
    texts = {}
    for part in ("train", "heldout"):
        texts[part] = b.folder / f"{part}.txt"
        texts[part].write_text("\n\n".join(f"{one['content']}\n{two['content']}" for one, two in rows(part)), "utf-8")
    for name, way in {"fitted layer by layer": "auto", "QERA-exact": "exact", "QERA-approx": "approx"}.items():
        if b.missing(name):
            command = [sys.executable, "-m", "anytune", "export", "merge", "-m", str(b.path), "-t", str(b.args.threads)]
            command += ["--lora", str(b.folder / "wren.gguf"), "-o", str(b.folder / "merged.gguf"), "--type", "Q3_K_M"]
            command += [
                "--absorb",
                "32",
                "--qera",
                way,
                "-f",
                str(texts["heldout"]),
                "--calibration",
                str(texts["train"]),
            ]
            began = resource.getrusage(resource.RUSAGE_CHILDREN)
            done = subprocess.run(
                [*command, "--no-verify", "--force", "--json"],
                check=True,
                cwd=common.ROOT,
                capture_output=True,
                text=True,
            )
            ended = resource.getrusage(resource.RUSAGE_CHILDREN)
            facts = json.loads(done.stdout)
            kept = b.folder / "merged-residual.gguf"
            b.keep(
                name,
                cpu_seconds=ended.ru_utime + ended.ru_stime - began.ru_utime - began.ru_stime,
                mib=kept.stat().st_size / common.MIB,
                **{key: facts["residual"][key] for key in ("kl", "same_top")},
                merged={key: facts["taken"][key] for key in ("kl", "same_top", "bytes") if key in facts["taken"]},
            )


PARTS = {"prompt": prompt, "adapter": adapter, "compress": compress, "repair": repair, "merge": merge, "absorb": absorb}


def main() -> None:
    options = common.parser(__doc__)
    options.add_argument("part", choices=list(PARTS))
    options.add_argument("--device", default="numpy")
    options.add_argument("--dtype", default="auto", help="of a GPU's matrix products")
    options.add_argument("--folder", default=str(common.ROOT / "runs" / "bench-adapt"), help="where what is made stays")
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--suffix", default="", help="of the result's name, such as _gemma3")
    options.add_argument("--again", action="store_true", help="from the start, instead of what is missing")
    b = Bench(options.parse_args())
    PARTS[b.args.part](b)


if __name__ == "__main__":
    main()
