"""Packing: whole examples side by side in micro-batches of at most `ubatch` tokens, without padding."""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass

import numpy as np

from anytune.errors import UserError
from anytune.text.dataset import Dataset


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """T tokens of n whole examples laid end to end; attention never crosses an example's boundary.

    ids        int32 [T]
    positions  int32 [T]     0, 1, 2, … from the start of each example
    starts     int32 [n + 1] boundaries of the examples: starts[0] = 0, starts[-1] = T
    targets    int32 [T]     the next token of the same example where that one carries loss, else -1
    """

    ids: np.ndarray
    positions: np.ndarray
    starts: np.ndarray
    targets: np.ndarray

    @property
    def loss_tokens(self) -> int:
        return int(np.count_nonzero(self.targets >= 0))

    @classmethod
    def of(cls, examples) -> MicroBatch:
        """From pairs (ids [t], loss [t]); loss[k] says whether token k is to be predicted."""
        pairs = [(np.asarray(ids, np.int32), np.asarray(loss, bool)) for ids, loss in examples]
        starts = np.zeros(len(pairs) + 1, np.int32)
        np.cumsum([len(ids) for ids, _ in pairs], out=starts[1:])
        total = int(starts[-1])
        ids, positions = np.empty(total, np.int32), np.empty(total, np.int32)
        targets = np.full(total, -1, np.int32)
        for (part, loss), lo, hi in zip(pairs, starts[:-1], starts[1:], strict=True):
            ids[lo:hi] = part
            positions[lo:hi] = np.arange(hi - lo, dtype=np.int32)
            if hi - lo > 1:
                targets[lo : hi - 1] = np.where(loss[1:], part[1:], -1)
        return cls(ids, positions, starts, targets)


def pack(dataset: Dataset, ubatch: int, seed: int, epoch: int) -> list[list[int]]:
    """Example indexes of each micro-batch of one epoch; every example is in exactly one of them.

    The examples are shuffled by (seed, epoch) and put one by one into the fullest micro-batch that still
    has room (best fit); then the micro-batches are shuffled, since the early ones are the full ones.
    Time is near linear in the number of examples. Raises UserError if an example is longer than ubatch.
    """
    lengths = dataset.lengths
    if len(lengths) and int(lengths.max()) > ubatch:
        worst = int(lengths.argmax())
        raise UserError(
            f"{dataset.where(worst)}: this example has {int(lengths[worst])} tokens, more than "
            f"the {ubatch} of a micro-batch; raise -ub or lower -c."
        )
    rng = np.random.default_rng([seed, epoch])
    bins: list[list[int]] = []
    room: dict[int, list[int]] = {}  # tokens left -> micro-batches that have exactly that many
    sizes: list[int] = []  # the keys of `room`, sorted
    for i in rng.permutation(len(lengths)).tolist():
        need = int(lengths[i])
        at = bisect_left(sizes, need)
        if at < len(sizes):
            left = sizes[at]
            which = room[left].pop()
            if not room[left]:
                del room[left], sizes[at]
        else:
            left, which = ubatch, len(bins)
            bins.append([])
        bins[which].append(i)
        left -= need
        if left > 0:
            if left not in room:
                room[left] = []
                insort(sizes, left)
            room[left].append(which)
    return [bins[b] for b in rng.permutation(len(bins))]


def make_batch(dataset: Dataset, indexes) -> MicroBatch:
    """The micro-batch of these examples, in this order."""
    return MicroBatch.of([dataset.example(i) for i in indexes])
