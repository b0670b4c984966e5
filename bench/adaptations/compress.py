"""Ranks 1 to 16 of an adapter, beside its truncated SVD."""

from __future__ import annotations

import time

from adaptations.shared import Bench, email_task

from anytune.adapt.compression import RIDGE, candidates, choose
from anytune.adapt.job import as_adapter
from anytune.adapt.partial import Partial
from anytune.adapt.spectrum import factors_of


def run(b: Bench) -> None:
    big, task = email_task(b)
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
