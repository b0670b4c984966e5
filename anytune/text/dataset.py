"""Tokenized examples end to end in flat arrays: 5 bytes a token, whatever the number of examples."""

from __future__ import annotations

import functools
import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from anytune.errors import UserError
from anytune.text.given import place


@dataclass(frozen=True, eq=False)
class Dataset:
    """n examples of together N tokens; example i is ids[offsets[i]:offsets[i + 1]].

    ids      int32 [N]
    loss     bool [N]      token is a target of the loss (never the first one of an example)
    offsets  int64 [n + 1] offsets[0] = 0, offsets[-1] = N
    lines    int64 [n]     line of the source file where the example begins, from 1
    files    int32 [n]     index into `paths`
    report   counts of what was read, split, cut and left out (JSON-able)
    """

    ids: np.ndarray
    loss: np.ndarray
    offsets: np.ndarray
    lines: np.ndarray
    files: np.ndarray
    paths: tuple[str, ...] = ()
    report: dict = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """int64 [n]: tokens of each example."""
        return np.diff(self.offsets)

    @property
    def tokens(self) -> int:
        return int(self.offsets[-1])

    @property
    def loss_tokens(self) -> int:
        return int(np.count_nonzero(self.loss))

    def example(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """(ids int32 [t], loss bool [t]) of one example, as views."""
        part = slice(int(self.offsets[index]), int(self.offsets[index + 1]))
        return self.ids[part], self.loss[part]

    def where(self, index: int) -> str:
        """'file, line n' of an example, for messages."""
        name = self.paths[self.files[index]] if self.paths else "data"
        return place(name, int(self.lines[index]))

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256 (hex) of tokens, mask and boundaries: equal exactly if training would see the same."""
        digest = hashlib.sha256()
        for part, kind in ((self.ids, "<i4"), (self.loss, "u1"), (self.offsets, "<i8")):
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(memoryview(np.ascontiguousarray(part.astype(kind, copy=False))).cast("B"))
        return digest.hexdigest()

    def select(self, indexes) -> Dataset:
        """A new data set of these examples, in this order."""
        indexes = np.asarray(indexes, dtype=np.int64)
        lengths = self.lengths[indexes]
        offsets = np.zeros(len(indexes) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        ids, loss = np.empty(offsets[-1], np.int32), np.empty(offsets[-1], bool)
        for k, i in enumerate(indexes):
            ids[offsets[k] : offsets[k + 1]], loss[offsets[k] : offsets[k + 1]] = self.example(i)
        report = dict(
            self.report, examples=len(indexes), tokens=int(offsets[-1]), loss_tokens=int(np.count_nonzero(loss))
        )
        return Dataset(ids, loss, offsets, self.lines[indexes], self.files[indexes], self.paths, report)

    def split(self, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
        """(train, validation): about `fraction` of the examples, chosen by `seed`, are never trained on.

        Pieces of one source line, and lines with the same tokens, stay on one side together, so that
        nothing of the validation set is seen in training. Raises UserError if either side would be empty.
        """
        if not 0 < fraction < 1:
            raise UserError(f"The validation fraction must be between 0 and 1, not {fraction:g}.")
        groups = self._groups()
        order = np.random.default_rng([seed, 0x5641]).permutation(len(groups))
        wanted, held = max(1, round(fraction * len(self))), np.zeros(len(self), bool)
        for g in order:
            if held.sum() + len(groups[g]) > max(wanted, len(groups[order[0]])):
                continue
            held[groups[g]] = True
            if held.sum() >= wanted:
                break
        if held.all() or not held.any():
            raise UserError(
                f"The data has only {len(groups)} distinct example(s), too few to hold "
                f"{fraction:g} of them out: add data or give a validation file."
            )
        return self.select(np.flatnonzero(~held)), self.select(np.flatnonzero(held))

    def _groups(self) -> list[list[int]]:
        """Examples that must stay together: those of one source line, and lines of equal content."""
        by_line: dict[tuple[int, int], list[int]] = {}
        for i, key in enumerate(zip(self.files.tolist(), self.lines.tolist(), strict=True)):
            by_line.setdefault(key, []).append(i)
        by_content: dict[bytes, list[int]] = {}
        for members in by_line.values():
            digest = hashlib.blake2b(digest_size=16)
            for i in members:
                digest.update(self.example(i)[0].tobytes() + b"|")
            by_content.setdefault(digest.digest(), []).extend(members)
        return list(by_content.values())


def beyond(sets: Sequence[Dataset], limit: int) -> str:
    """A sentence where examples are longer than the model's context of `limit` tokens, else ""."""
    count = sum(int(np.count_nonzero(data.lengths > limit)) for data in sets)
    what = "1 example is" if count == 1 else f"{count:,} examples are"
    return (
        (
            f"{what} longer than the model's context of {limit:,} tokens, beyond which it was never trained: lower "
            f"-c to {limit:,}."
        )
        if count
        else ""
    )


class Builder:
    """Collects examples one at a time into flat buffers (no list of Python integers per example)."""

    def __init__(self) -> None:
        self.ids, self.loss = array("i"), bytearray()
        self.offsets, self.lines, self.files = array("q", [0]), array("q"), array("i")

    def add(self, ids, loss, line: int, file: int = 0) -> None:
        """ids: integers; loss: booleans of the same length. The first token never carries loss."""
        if not ids:
            return
        start = len(self.loss)
        self.ids.extend(ids)
        self.loss.extend(loss)
        self.loss[start] = 0
        self.offsets.append(len(self.ids))
        self.lines.append(line)
        self.files.append(file)

    def __len__(self) -> int:
        return len(self.lines)

    def finish(self, paths=(), report: dict | None = None) -> Dataset:
        """The arrays share the buffers' memory: add nothing afterwards."""
        loss = np.frombuffer(self.loss, np.uint8).view(bool)
        ids = np.frombuffer(self.ids, np.intc).astype(np.int32, copy=False)
        report = dict(report or {}, examples=len(self), tokens=len(ids), loss_tokens=int(np.count_nonzero(loss)))
        return Dataset(
            ids,
            loss,
            np.frombuffer(self.offsets, np.int64),
            np.frombuffer(self.lines, np.int64),
            np.frombuffer(self.files, np.intc).astype(np.int32, copy=False),
            tuple(str(p) for p in paths),
            report,
        )


def cuts_of(count: int, step: int, framed: bool) -> list[int]:
    """Where to cut `count` tokens: every `step`; but a last piece of one token, which has nothing to predict
    unless BOS is before it, takes another from the piece before."""
    cuts = [*range(0, count, step), count]
    if not framed and step > 2 and len(cuts) > 2 and cuts[-1] - cuts[-2] == 1:
        cuts[-2] -= 1
    return cuts
