"""Examples packed into batches; a beginning that all share is computed once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from anytune.adapt.walk import Batch

if TYPE_CHECKING:
    from anytune.adapt.data import Example

SHARED = 8  # tokens: a shorter common beginning is not worth a batch of its own


def batches(
    examples: Sequence[Example], size: int, teacher: bool, share: bool = True
) -> tuple[list[Batch], np.ndarray]:
    """(batches of at most `size` tokens, or of one example; the beginning that all of them are behind) for the
    student or the teacher. Both have the same examples in each batch."""
    groups: list[list[Example]] = [[]]
    held = 0
    for example in examples:
        length = max(len(example.ids), example.own if share else len(example.behind))
        if groups[-1] and held + length > size:
            groups.append([])
            held = 0
        groups[-1].append(example)
        held += length
    return pack(groups, teacher, share)


def pack(groups: Sequence[Sequence[Example]], teacher: bool, share: bool = True) -> tuple[list[Batch], np.ndarray]:
    """As batches(), where it is known which examples are together."""
    full = [[e.behind if teacher else e.ids for e in group] for group in groups]
    every = [ids for group in full for ids in group]
    front = _beginning(every, [e.own for group in groups for e in group]) if share else 0
    return [_batch(list(zip(*both)), front) for both in zip(full, groups)], every[0][:front]


def _beginning(full: Sequence[np.ndarray], own: Sequence[int]) -> int:
    """Tokens that all begin with, of none's own."""
    most = min(len(ids) - count for ids, count in zip(full, own, strict=True))
    if len(full) < 2 or most < SHARED:
        return 0
    same = np.all([ids[:most] == full[0][:most] for ids in full], axis=0)
    front = most if same.all() else int(np.argmin(same))
    return front if front >= SHARED else 0


def _batch(group: Sequence[tuple[np.ndarray, Example]], front: int) -> Batch:
    parts = [ids[front:] for ids, _ in group]
    starts = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int32)
    rows, scored, targets = [], [], []
    for (_, example), part, start in zip(group, parts, starts):
        first = start + len(part) - example.own
        rows.append(np.arange(first, start + len(part)))
        said = np.flatnonzero(example.loss[len(example.ids) - example.own :][1:])  # the token behind an own one
        scored.append(first + said)
        targets.append(example.ids[len(example.ids) - example.own :][1:][said])
    return Batch(
        np.concatenate(parts).astype(np.int32),
        starts,
        *(np.concatenate(x).astype(np.int32) for x in (rows, scored, targets)),
        front,
    )
