"""One type for each tensor: the least sum of costs within a budget, by dynamic programming over the budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

BINS = 1 << 15  # that the budget is divided into: each tensor's price is rounded up to one


@dataclass(frozen=True)
class Option:
    """One type for one tensor: what it takes of the budget (bytes, cycles), and what it costs in nats."""

    kind: str
    price: int
    cost: float


def cheapest(options: Mapping[str, Sequence[Option]]) -> int:
    """The least total cost over all tensors."""
    return sum(_useful(some)[0].price for some in options.values())


def choose(options: Mapping[str, Sequence[Option]], budget: int) -> dict[str, str]:
    """Tensor -> type, with the least sum of costs whose prices sum to at most `budget`.

    Exact but for prices rounded to BINS-ths of what the budget leaves beyond the cheapest choice; what is left at the
    end goes to the best steps that still fit. ValueError: the budget is below cheapest(options).
    """
    spare = budget - cheapest(options)
    if spare < 0:
        raise ValueError(f"at least {cheapest(options)} are needed")
    kept = {name: _useful(some) for name, some in options.items()}
    unit = max(1, -(-spare // BINS))
    size = spare // unit + 1
    best = np.zeros(size)
    taken = np.zeros((len(kept), size), np.uint8)
    for row, some in enumerate(kept.values()):
        total = np.full(size, np.inf)
        for at, option in enumerate(some):
            step = -(-(option.price - some[0].price) // unit)
            if step >= size:
                break
            trial = best[: size - step] + option.cost
            better = trial < total[step:]
            total[step:][better] = trial[better]
            taken[row, step:][better] = at
        best = total
    chosen, place = {}, size - 1
    for row, (name, some) in reversed(list(enumerate(kept.items()))):
        chosen[name] = int(taken[row, place])
        place -= -(-(some[chosen[name]].price - some[0].price) // unit)
    _spend(kept, chosen, budget)
    return {name: kept[name][chosen[name]].kind for name in options}


def _useful(some: Sequence[Option]) -> list[Option]:
    """By price, without those that another beats in both; never empty."""
    found: list[Option] = []
    for option in sorted(some, key=lambda o: (o.price, o.cost)):
        if np.isfinite(option.cost) and (not found or option.cost < found[-1].cost):
            found.append(option)
    return found


def _spend(kept: Mapping[str, Sequence[Option]], chosen: dict[str, int], budget: int) -> None:
    """Take single steps up while one fits, the most gain for its price first."""
    left = budget - sum(kept[name][at].price for name, at in chosen.items())
    while True:
        steps = []
        for name, at in chosen.items():
            now = kept[name][at]
            steps += [
                ((now.cost - other.cost) / (other.price - now.price), name, number)
                for number, other in enumerate(kept[name])
                if number > at and other.price - now.price <= left
            ]
        if not steps:
            return
        _, name, number = max(steps)
        left -= kept[name][number].price - kept[name][chosen[name]].price
        chosen[name] = number
