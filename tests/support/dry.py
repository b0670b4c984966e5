"""Dry runs for the tests of estimates."""

from __future__ import annotations

from typing import Any

from anytune.engine.budget import Way
from anytune.model.dry_run import DryRun
from anytune.model.full_trainee import FullTrainee
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
