"""A five-shot prompt as an adapter: closed form, less data, steps, AdamW."""

from __future__ import annotations

import json

from adaptations.shared import Bench, emails

from anytune.adapt.data import Context
from anytune.adapt.fit import Recipe
from anytune.adapt.job import Task, Teacher, as_adapter, run_fit
from anytune.adapt.ranks import costs, spread
from anytune.adapt.steps import gradient_steps, prompt_steps
from anytune.adapter.adapter import Adapter

SHOTS, PERSONA = 5, "You are wren. You write e-mails in lower case, dry and short, and end with a goose report."


def run(b: Bench) -> None:
    every, held = emails("train"), emails("heldout")
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
