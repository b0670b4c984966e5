"""An adapter from the activations of another alone."""

from __future__ import annotations

from adaptations.shared import Bench, email_task

from anytune.adapt.fit import Recipe
from anytune.adapt.job import as_adapter, run_fit, truncated


def run(b: Bench) -> None:
    big, task = email_task(b)
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
