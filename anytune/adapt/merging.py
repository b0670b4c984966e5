"""Merging: adapters of several tasks become one, which says on each task's data what that task's adapter says.

Every regression has the rows of all tasks, each with its own adapter as the teacher: the regression mean of Jin et al.
2023, but of inputs as they are behind the layers merged already, and cut to a rank in its own metric.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from anytune.adapt import report
from anytune.adapt.data import Reading, read_held
from anytune.adapt.ending import Outputs, Result, check_outputs, finish
from anytune.adapt.fit import Recipe
from anytune.adapt.intermediate import Intermediate
from anytune.adapt.job import Settings, Task, Teacher, as_adapter, fingerprint, memory_peak, prepare, run_fit, truncated
from anytune.adapt.measure import measure
from anytune.adapt.partial import Partial
from anytune.adapter.adapter import Adapter
from anytune.errors import UserError
from anytune.adapter.combine import combine

if TYPE_CHECKING:
    from anytune.model import Model

RIDGE, SPLIT = 1e-3, 0.2


def merge(
    model: Model,
    parts: Sequence[tuple[Adapter, str | os.PathLike]],
    *,
    rank: int = 16,
    ridge: float | None = None,
    guard: float | None = None,
    reading: Reading | None = None,
    val_file: Sequence[str | os.PathLike] = (),
    val_split: float = SPLIT,
    seed: int = 42,
    settings: Settings | None = None,
    outputs: Outputs | None = None,
) -> Result:
    """One adapter for the tasks of `parts`, (adapter, its data) each. val_file: one for each part, or none.

    Raises UserError.
    """
    settings, outputs = settings or Settings(), outputs or Outputs()
    check_outputs(outputs, settings.resume)
    if len(parts) < 2:
        raise UserError(
            "Merging takes two adapters or more, each with its data: --lora a.gguf -f a.jsonl --lora b.gguf -f b.jsonl."
        )
    if val_file and len(val_file) != len(parts):
        raise UserError(f"Give --val-file once for each of the {len(parts)} adapters, or not at all.")
    reading = reading or Reading(model.template)
    prepare(model)
    tasks, notes = [], []
    for number, (adapter, path) in enumerate(parts):
        adapter.check(model.gguf)
        examples, held = read_held(model, [path], reading, [val_file[number]] if val_file else None, val_split, seed)
        tasks.append(Task(Teacher(model, adapter), examples.examples, held.examples, os.fspath(path)))
        notes += examples.notes
    recipe = Recipe(rank, RIDGE if ridge is None else ridge, guard or 0.0)
    settings = dataclasses.replace(settings, output=outputs.output)
    identity = fingerprint(model, tasks, recipe, settings, **{"--lora-alpha": settings.alpha})
    template = next((adapter.chat_template for adapter, _ in parts if adapter.chat_template), None)
    with Intermediate(outputs.intermediate, model, settings.resume) as kept:
        fitted = run_fit(model, tasks, recipe, dataclasses.replace(settings, keep=kept.record), identity)
        made = as_adapter(model, fitted.pairs, settings.alpha, template)
        kept.sums(recipe, template)
        kept.adapter("closed-form", made)
    adapters = [adapter for adapter, _ in parts]
    others = {
        f"linear merge, rank {rank}": truncated(combine([(a, 1 / len(parts)) for a in adapters]), rank),
        f"sum, rank {rank}": truncated(combine([(a, 1.0) for a in adapters]), rank),
        f"sum, rank {sum(a.rank for a in adapters)}": combine([(a, 1.0) for a in adapters]),
    }
    found = [measure(model, task, made, others, settings) for task in tasks]
    facts = {
        "command": "merge",
        "rank": rank,
        "ridge": recipe.ridge,
        "notes": notes,
        "raised": fitted.raised,
        "tokens": sum(e.own for task in tasks for e in task.examples),
        "gaps": [layer.gap for layer in fitted.layers],
        "tasks": [{"data": task.name, **report.measured_facts(one)} for task, one in zip(tasks, found)],
        "took": {"cpu": fitted.cpu, "seconds": fitted.seconds, "peak": memory_peak(model)},
    }
    done = finish(model, made, facts, found, outputs, f"merged, rank {rank}")
    if outputs.output is not None and done.success:
        Partial(outputs.output, identity).remove()
    return done


def ties(adapters: Sequence[Adapter], rank: int, keep: float = 0.2) -> Adapter:
    """TIES (Yadav et al. 2023), cut to a rank: of each change the `keep` largest numbers, the sign with more weight
    for each place, the mean of those that have it."""
    tensors = {}
    for name in {name for adapter in adapters for name in adapter.tensors}:
        changes = [np.float32(a.scale) * a.tensors[name][1] @ a.tensors[name][0] for a in adapters if name in a.tensors]
        kept = []
        for change in changes:
            floor = np.quantile(np.abs(change), 1 - keep)
            kept.append(np.where(np.abs(change) >= floor, change, 0))
        stack = np.stack(kept)
        sign = np.sign(stack.sum(0))
        agreed = (np.sign(stack) == sign) & (stack != 0)
        mean = np.where(agreed, stack, 0).sum(0) / np.maximum(agreed.sum(0), 1)
        u, s, v = np.linalg.svd(mean, full_matrices=False)
        tensors[name] = (v[:rank].astype(np.float32), (u[:, :rank] * s[:rank]).astype(np.float32))
    return dataclasses.replace(adapters[0], tensors=tensors, rank=rank, alpha=float(rank), rslora=False)
