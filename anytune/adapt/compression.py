"""Compressing: an adapter, or the difference of two files, becomes an adapter of lower rank that says much the same."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from anytune.adapt import report
from anytune.adapt.closed import Pair, allocate
from anytune.adapt.batching import batches
from anytune.adapt.data import Reading, read_held
from anytune.adapt.ending import Outputs, Result, check_outputs, finish
from anytune.adapt.fisher import look_back
from anytune.adapt.fit import Recipe
from anytune.adapt.intermediate import Intermediate
from anytune.adapt.job import Settings, Task, Teacher, as_adapter, fingerprint, memory_peak, prepare, run_fit
from anytune.adapt.measure import beside, measure
from anytune.adapt.partial import Partial
from anytune.adapt.spectrum import Factors, Spectrum, difference, factors_of, pairs_of, plain_values
from anytune.adapter.adapter import Adapter
from anytune.errors import UserError
from anytune.units import bytes_text

if TYPE_CHECKING:
    from anytune.model import Model

RIDGE, SPLIT = 1e-4, 0.2
HEAD = 48 << 10  # bytes of a file beside its numbers: names, template
WIDE = 256  # rank to which a difference of files is looked at
FAR = 8  # times the mean that a tensor's rank may be: engines hold all pairs at the largest rank
CHOSEN_ON = 12  # examples on which the ways are compared
WAYS = ("truncated-svd", "data-aware", "data-aware-mended")  # files of them
PARTS = ("worth", "left", "right")  # of Spectrum.values()


def compress(
    model: Model,
    data: Sequence[str | os.PathLike],
    *,
    adapter: Adapter | None = None,
    tuned: Model | None = None,
    rank: int | None = None,
    size: int | None = None,
    ridge: float | None = None,
    reading: Reading | None = None,
    val_file: Sequence[str | os.PathLike] = (),
    val_split: float = SPLIT,
    seed: int = 42,
    settings: Settings | None = None,
    outputs: Outputs | None = None,
) -> Result:
    """An adapter of `rank` on average (as many parameters as one of that rank), or of `size` bytes, that says what
    `adapter` on `model` says, or what the file `tuned` says.

    Ranks go to the tensors where they are worth most. Raises UserError.
    """
    settings, outputs = settings or Settings(), outputs or Outputs()
    check_outputs(outputs, settings.resume)
    if (rank is None) == (size is None):
        raise UserError("Say how small: give either --rank or --size.")
    if (adapter is None) == (tuned is None):
        raise UserError("There is nothing to compress: give --lora, or --tuned with the model it was tuned from.")
    prepare(model, tuned or model)
    reading = reading or Reading(model.template)
    examples, held = read_held(model, data, reading, val_file, val_split, seed)
    factors = factors_of(adapter) if adapter is not None else difference(model.gguf, tuned.gguf, WIDE)
    if not factors:
        raise UserError("The two files have the same linears: there is nothing to compress.")
    teacher = Teacher(model, adapter) if adapter is not None else Teacher(tuned)
    task = Task(teacher, examples.examples, held.examples)
    began, started = time.process_time(), time.perf_counter()
    ridge = RIDGE if ridge is None else ridge
    partial = _partial(model, task, rank, size, ridge, settings, outputs)
    ways = candidates(model, task, factors, _budget(factors, rank, size), rank, settings, ridge, partial)
    template = adapter.chat_template if adapter is not None else None
    made = {name: as_adapter(model, pairs, settings.alpha, template) for name, pairs in ways.items()}
    with Intermediate(outputs.intermediate, model) as kept:
        for number, one in enumerate(made.values()):
            kept.adapter(WAYS[number], one)
        kept.arrays("worth", {} if partial is None else partial.extra)
    name = choose(model, task, made, settings)
    took = {"cpu": time.process_time() - began, "seconds": time.perf_counter() - started, "peak": memory_peak(model)}
    svd = next(iter(made))
    found = measure(model, task, made[name], {svd: made[svd]} if name != svd else {}, settings)
    ranks = {tensor: len(pair.a) for tensor, pair in ways[name].items()}
    facts = {
        "command": "compress",
        "rank": rank,
        "size": size,
        "parameters": _parameters(factors, ranks),
        "way": name,
        "ranks": ranks,
        "tokens": sum(e.own for e in task.examples),
        "examples": len(task.examples),
        "notes": list(examples.notes),
        **report.measured_facts(found),
        "took": took,
    }
    done = finish(
        model, made[name], facts, [found], outputs, f"{name}, ranks {min(ranks.values())} to {max(ranks.values())}"
    )
    if partial is not None and done.success:
        partial.remove()
    return done


def _partial(
    model: Model, task: Task, rank: int | None, size: int | None, ridge: float, settings: Settings, outputs: Outputs
) -> Partial | None:
    """What an interrupted run left beside the output, if there is one and this run is to take it up."""
    if outputs.output is None:
        return None
    identity = fingerprint(
        model, [task], Recipe(rank or 0, ridge), settings, **{"--size": size, "--lora-alpha": settings.alpha}
    )
    partial = Partial(outputs.output, identity)
    if settings.resume:
        partial.load()
    return partial


def _budget(factors: Mapping[str, Factors], rank: int | None, size: int | None) -> int:
    """Parameters that may be spent."""
    if rank is not None:
        return rank * sum(f.cost for f in factors.values())
    budget = (size - HEAD) // 4
    least = min(f.cost for f in factors.values())
    if budget < least:
        raise UserError(
            f"--size {bytes_text(size)} is too small for any adapter of this model: give "
            f"{bytes_text(4 * least + HEAD)} or more."
        )
    return budget


def _parameters(factors: Mapping[str, Factors], ranks: Mapping[str, int]) -> int:
    return sum(factors[name].cost * rank for name, rank in ranks.items())


def candidates(
    model: Model,
    task: Task,
    factors: Mapping[str, Factors],
    budget: int,
    rank: int | None,
    settings: Settings,
    ridge: float,
    partial: Partial | None = None,
) -> dict[str, dict[str, Pair]]:
    """{way: pairs} within the budget, the plain one first: truncated SVD, data-aware with ranks allocated, and the same
    mended layer by layer."""
    plain = plain_values(factors)
    cost = {name: f.cost for name, f in factors.items()}
    most = max(1, FAR * budget // sum(cost.values()))
    if rank is not None:
        even = {name: min(rank, len(f.a)) for name, f in factors.items()}
    else:
        even = allocate({name: values[0][:most] for name, values in plain.items()}, cost, budget)
    ways = {"truncated SVD": pairs_of(factors, plain, even)}
    if all(even[name] >= len(f.a) for name, f in factors.items()):
        return ways  # the adapter itself
    values = _worth(task, factors, settings, partial)
    ranks = allocate({name: v[0][:most] for name, v in values.items()}, cost, budget)
    ways["data-aware"] = {name: pair for name, pair in pairs_of(factors, values, ranks).items() if len(pair.a)}
    ways["data-aware, mended"] = _mended(model, task, factors, values, ranks, ridge, settings, partial)
    return ways


def _worth(
    task: Task, factors: Mapping[str, Factors], settings: Settings, partial: Partial | None
) -> dict[str, tuple[np.ndarray, ...]]:
    """Spectrum.values() of the task's teacher on its data, or what an interrupted run found."""
    if partial is not None and any(name.endswith(PARTS[0]) for name in partial.extra):
        return {name: tuple(partial.extra[f"{name}.{part}"] for part in PARTS) for name in factors}
    spectrum = Spectrum(factors, task.teacher.model.engine.algebra)
    found = batches(task.examples, 2048, False, False)[0]
    look_back(
        task.teacher.model,
        found,
        spectrum.see,
        task.teacher.adapter,
        tell=lambda n: settings.tell("worth of ranks", n + 1, len(found), ""),
    )
    values = spectrum.values()
    if partial is not None:
        partial.extra |= {
            f"{name}.{part}": np.asarray(array, np.float64)
            for name, arrays in values.items()
            for part, array in zip(PARTS, arrays)
        }
        partial.save({})
    return values


def _mended(
    model: Model,
    task: Task,
    factors: Mapping[str, Factors],
    values: Mapping[str, tuple],
    ranks: Mapping[str, int],
    ridge: float,
    settings: Settings,
    partial: Partial | None = None,
) -> dict[str, Pair]:
    """The data-aware changes with b as it is and a refitted, front to back: what early layers lose, later ones make
    good as far as their outputs' directions allow."""
    bases, zeros = {}, {}
    for name, rank in ranks.items():
        f, (_, left, _) = factors[name], values[name]
        b = f.b @ left[:, :rank]
        bases[name] = (b.astype(np.float32), np.linalg.pinv(b).astype(np.float32) if rank else None)
        zeros[name] = (f.a, f.b)

    def prior(name: str) -> np.ndarray:
        if name in zeros:
            a, b = zeros[name]
            return (b @ a).astype(np.float32)
        return np.zeros(model.gguf.tensors[name].shape, np.float32)

    recipe = Recipe(max(ranks.values()), ridge, prior=prior, bases=bases)
    fitted = run_fit(model, [task], recipe, dataclasses.replace(settings, output=None), partial or {})
    return {name: pair for name, pair in fitted.pairs.items() if len(pair.a)}


def choose(model: Model, task: Task, made: Mapping[str, Adapter], settings: Settings) -> str:
    """The way that is nearest to the teacher on some of the examples (none that are held out)."""
    if len(made) == 1:
        return next(iter(made))
    found = beside(model, task.teacher, made, task.examples[:CHOSEN_ON], settings, "ways compared")
    return min(found, key=lambda name: found[name].kl)
