"""Dry runs for the tests of estimates."""

from __future__ import annotations

import tracemalloc
from typing import Any

from anytune.engine.budget import Way
from anytune.engine.dry import peaks
from anytune.model.dry_run import DryRun
from anytune.model.full_trainee import FullTrainee
from anytune.model.passes import groups_of
from anytune.model.spec import FullSpec, LoraSpec


def spec_of(trainee) -> Any:
    if isinstance(trainee, FullTrainee):
        return FullSpec(trainee.full, trainee.shapes)
    return LoraSpec(trainee.lora, {n: tuple(trainee.model.gguf.tensors[n].shape) for n in trainee.names})


def dry_run(trainee, hold: str, tokens: int, sizes: Any = None) -> DryRun:
    """Of micro-batches of one example of so many tokens."""
    model, spec = trainee.model, spec_of(trainee)
    way = Way(0.0, hold, trainee.engine.sizes if sizes is None else sizes, "")
    engine = trainee.engine.budget(model.weights, 1 << 40).dry(way, tokens)
    return DryRun(model, spec, engine, hold, spec.lowest(model.config.layers), tokens, tokens)


def prepared(run: DryRun) -> int:
    """Bytes that it holds before the first micro-batch."""
    return run.engine.total(run.prepared.change)


def kept(run: DryRun, sizes: Any, keep: int) -> int:
    """Bytes of what the NumPy engine keeps for the next step: its pool, its workers' scratch, streamed bytes."""
    return sum(size for kind, size in peaks(run.segments(sizes, keep))[0].items() if kind not in ("bytes", "jobs"))


def kept_by(engine) -> int:
    """The same of an engine that ran."""
    buffers = [b for d in engine._scratch for b in d.values()] + [*engine._raw.values()]
    return engine.pool.bytes + sum(b.nbytes for b in buffers)


def check(trainee, batch, hold: str, sizes: Any, keep: int, exact: bool = True) -> DryRun:
    """A first step takes what a dry run says, within a tenth, and keeps it to the byte, nearly. exact: not only at
    most, as several workers share their jobs."""
    e, tokens = trainee.engine, len(batch.ids)
    trainee.keep, e.sizes = keep, sizes
    trainee.model.hold(hold)
    for weight in trainee.model.weights.matrices.values():
        weight.forget()
    for group in groups_of(trainee.layers, trainee.head):
        group.packed = None
    e.release()
    run = dry_run(trainee, hold, tokens, sizes)
    said, least = run.measure(sizes, keep)[0] - prepared(run), kept(run, sizes, keep)
    tracemalloc.start()
    trainee.accumulate(batch, 0.1, 1, 0)
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert kept_by(e) <= 1.01 * least and taken <= 1.1 * said
    if exact:
        assert kept_by(e) >= 0.99 * least and taken >= 0.9 * said
    return run
