"""Two adapters as one, beside a linear merge, TIES and the sum of both ranks."""

from __future__ import annotations

import json
import re
import time

from adaptations.shared import EMAILS, Bench, emails

from anytune.adapt.fit import Recipe
from anytune.adapt.job import Task, Teacher, as_adapter, run_fit, truncated
from anytune.adapt.merging import ties
from anytune.adapter.combine import combine


def taken_apart(request: str) -> tuple[str, str]:
    """A second task whose answer is known: {"verb", "to", "words"} of a request."""
    words = re.findall(r"[A-Za-z']+", request)
    to = next((w for w in words[1:] if w[0].isupper() and len(w) > 2), "nobody")
    answer = {"verb": words[0].lower(), "to": to.removesuffix("'s").lower(), "words": len(words)}
    return "JSON: " + request, json.dumps(answer)


def run(b: Bench) -> None:
    second = {
        part: [
            [
                {"role": role, "content": words}
                for role, words in zip(("user", "assistant"), taken_apart(row[0]["content"]))
            ]
            for row in emails(part)
        ]
        for part in ("train", "heldout")
    }
    one = b.trained("wren", EMAILS / "train.jsonl", 40)
    two = b.trained("json", b.write("json-train", second["train"]), 25)
    tasks = [
        Task(
            Teacher(b.model, one),
            b.examples("train-32", emails("train")[:32]),
            b.examples("heldout", emails("heldout")),
        ),
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
