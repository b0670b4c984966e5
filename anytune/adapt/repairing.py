"""Repairing: what rounding to few bits took from a file comes back as an adapter."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from anytune.adapt import report
from anytune.adapt.closed import Pair, truncate
from anytune.adapt.data import Reading, read_held, text_examples
from anytune.adapt.distillation import check_shape, same_file
from anytune.adapt.ending import Outputs, Result, check_outputs, finish
from anytune.adapt.fit import Recipe
from anytune.adapt.intermediate import Intermediate
from anytune.adapt.job import Settings, Task, Teacher, as_adapter, fingerprint, memory_peak, prepare, run_fit
from anytune.adapt.measure import measure
from anytune.adapt.partial import Partial
from anytune.adapt.ranks import costs, spread
from anytune.adapter.adapter import Adapter
from anytune.engine.algebra import HostAlgebra
from anytune.errors import UserError

if TYPE_CHECKING:
    from anytune.model import Model

RANK, RIDGE, SPLIT = 32, 1.0, 0.2
WINDOW = 512  # tokens of a window of text


def weights_error(model: Model, reference: Model, adapter: Adapter | None) -> Callable[[str], np.ndarray]:
    """{tensor} -> what the student's weights lack of the reference's (with its adapter), float32 [out, in]."""

    def error(name: str) -> np.ndarray:
        found = reference.gguf.float32(name) - model.gguf.float32(name)
        if adapter is not None and name in adapter.tensors:
            a, b = adapter.tensors[name]
            found = found + np.float32(adapter.scale) * b @ a
        return found

    return error


def repair(
    model: Model,
    data: Sequence[str | os.PathLike],
    reference: Model,
    *,
    adapter: Adapter | None = None,
    rank: int = RANK,
    ridge: float | None = None,
    guard: float | None = None,
    reading: Reading | None = None,
    val_file: Sequence[str | os.PathLike] = (),
    val_split: float = SPLIT,
    seed: int = 42,
    settings: Settings | None = None,
    outputs: Outputs | None = None,
) -> Result:
    """An adapter with which `model`, a file in few bits, says what `reference` says (with `adapter`, if given).

    Each change starts from the weights' rounding error; the sequential fit refines it on the data. Raises UserError.
    """
    settings, outputs = settings or Settings(), outputs or Outputs()
    check_outputs(outputs, settings.resume)
    check_shape(model, reference)
    if adapter is None and same_file(model, reference):
        raise UserError("A file cannot repair itself: give the higher-precision file as --reference.")
    reading = reading or Reading(model.template)
    examples, held = read_held(model, data, reading, val_file, val_split, seed)
    task = Task(Teacher(reference, adapter), examples.examples, held.examples)
    prepare(model, reference)
    error = weights_error(model, reference, adapter)
    ranks = spread(costs(model), rank)
    recipe = Recipe(rank, RIDGE if ridge is None else ridge, guard or 0.0, error, relative=True, ranks=ranks)
    settings = dataclasses.replace(settings, output=outputs.output)
    identity = fingerprint(model, [task], recipe, settings, **{"--lora-alpha": settings.alpha})
    template = adapter.chat_template if adapter is not None else None
    with Intermediate(outputs.intermediate, model, settings.resume) as kept:
        fitted = run_fit(model, [task], recipe, dataclasses.replace(settings, keep=kept.record), identity)
        made = as_adapter(model, fitted.pairs, settings.alpha, template)
        kept.sums(recipe, template)
        kept.adapter("closed-form", made)
    svd = as_adapter(model, plain(fitted.pairs, error, rank))
    found = measure(model, task, made, {f"truncated SVD, rank {rank}": svd}, settings)
    facts = {
        "command": "repair",
        "rank": rank,
        "ridge": recipe.ridge,
        "tokens": sum(e.own for e in task.examples),
        "examples": len(task.examples),
        "notes": list(examples.notes),
        "raised": fitted.raised,
        "gaps": [layer.gap for layer in fitted.layers],
        **report.measured_facts(found),
        "took": {"cpu": fitted.cpu, "seconds": fitted.seconds, "peak": memory_peak(model)},
    }
    done = finish(model, made, facts, [found], outputs, f"repaired, rank {rank}")
    if outputs.output is not None and done.success:
        Partial(outputs.output, identity).remove()
    return done


def plain(names: Sequence[str] | dict, error: Callable[[str], np.ndarray], rank: int) -> dict[str, Pair]:
    """The truncated SVD of each tensor's error."""
    found, la = {}, HostAlgebra()
    for name in names:
        change = error(name)
        found[name] = truncate(la, change, change, rank)
    return found


def restore(
    merged: Model,
    base: Model,
    adapter: Adapter | None,
    text: str,
    rank: int,
    chunks: int | None = None,
    tell: Callable[[str, int, int, str], None] = lambda *_: None,
) -> Adapter:
    """What `merged`, a file that rounding cost something, lacks of base and adapter, as an adapter of it: the fit of
    repair() on windows of a text. UserError if nothing was lost."""
    error = weights_error(merged, base, adapter)
    names = [name for name, info in merged.gguf.tensors.items() if name.startswith("blk.") and len(info.shape) == 2]
    if not any(np.abs(error(name)).max() > 0 for name in names):
        raise UserError("There is nothing to absorb: the merged file's weights are exact.")
    prepare(merged, base)
    task = Task(Teacher(base, adapter), text_examples(merged, text, WINDOW, most=chunks), ())
    fitted = run_fit(
        merged,
        [task],
        Recipe(rank, RIDGE, prior=error, relative=True, ranks=spread(costs(merged), rank)),
        Settings(tell=tell),
        {},
    )
    return as_adapter(merged, fitted.pairs, None, adapter.chat_template if adapter is not None else None)
