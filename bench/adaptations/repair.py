"""A file in Q2_K at rank 32, on e-mails and text, beside QERA."""

from __future__ import annotations

import time

from adaptations.shared import Bench, command, emails

from anytune import load
from anytune.adapt.data import text_examples
from anytune.adapt.fit import Recipe
from anytune.adapt.job import Task, Teacher, as_adapter, run_fit
from anytune.adapt.measure import beside
from anytune.adapt.ranks import costs, spread
from anytune.adapt.repairing import plain, weights_error
from anytune.adapt.report import distance_facts
from anytune.export.absorb import residual, statistics


def run(b: Bench) -> None:
    rounded = b.folder / "q2_k.gguf"
    if not rounded.exists():
        command("quantize", b.path, rounded, "Q2_K", "--allow-requantize")
    student = load(rounded, **b.options)
    teacher, train = Teacher(b.model), emails("train")[:32]
    tests = {
        "e-mails": b.examples("heldout-12", emails("heldout")[:12]),
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
