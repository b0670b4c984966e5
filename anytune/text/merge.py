"""The merging that BPE and SentencePiece share: join the best neighbouring pair until none is left."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush

_SHORT = 24  # up to here a plain scan for the best pair beats a heap


def merge(parts: list[str], cost: Callable[[str, str], float | None]) -> list[str]:
    """Join neighbours, always the pair of lowest cost (the leftmost of equals), in place; returns `parts`.

    cost: of joining two neighbours, or None if they may not be joined. Time: O(n log n).
    """
    if len(parts) < 2:
        return parts
    return _scan(parts, cost) if len(parts) <= _SHORT else _heap(parts, cost)


def _scan(parts: list[str], cost) -> list[str]:
    never = float("inf")

    def price(a: str, b: str) -> float:
        found = cost(a, b)
        return never if found is None else found

    costs = [price(a, b) for a, b in zip(parts, parts[1:], strict=False)]
    while costs:
        best = min(costs)
        if best == never:
            break
        at = costs.index(best)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
        del costs[at]
        if at < len(costs):
            costs[at] = price(parts[at], parts[at + 1])
        if at:
            costs[at - 1] = price(parts[at - 1], parts[at])
    return parts


def _heap(parts: list[str], cost) -> list[str]:
    count = len(parts)
    before, after = list(range(-1, count - 1)), [*range(1, count), -1]
    heap = []
    for left in range(count - 1):
        found = cost(parts[left], parts[left + 1])
        if found is not None:
            heap.append((found, left, len(parts[left]) + len(parts[left + 1])))
    heapify(heap)
    while heap:
        _, left, size = heappop(heap)
        right = after[left]
        # An entry is stale once either side has been joined to another neighbour: the sizes tell.
        if not parts[left] or right < 0 or len(parts[left]) + len(parts[right]) != size:
            continue
        parts[left] += parts[right]
        parts[right] = ""
        follow = after[left] = after[right]
        if follow >= 0:
            before[follow] = left
        for a, b in ((before[left], left), (left, follow)):
            if a >= 0 and b >= 0:
                found = cost(parts[a], parts[b])
                if found is not None:
                    heappush(heap, (found, a, len(parts[a]) + len(parts[b])))
    parts[:] = [part for part in parts if part]
    return parts
