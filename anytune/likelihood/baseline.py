"""A run's distributions in a file, in the format of llama.cpp's --kl-divergence-base: 16 bits a log-probability.

The header is the mark, then int32 context, vocabulary and windows, then the windows' tokens as int32. For every
scored token follows a row of uint16: a float32 step and a float32 lowest log-probability, then one number a token of
the vocabulary (and one more if that is odd).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np

from anytune.errors import UserError

MARK = b"_logits_"
DEPTH = 16.0  # nats below the likeliest token, beyond which all are alike


def scored(context: int) -> int:
    """Tokens of a window that are scored: those of its second half, each from what comes before it."""
    return context - 1 - context // 2


def row_length(vocabulary: int) -> int:
    return 2 * ((vocabulary + 1) // 2) + 4


def write_header(file: IO, windows: Sequence[Sequence[int]], vocabulary: int) -> None:
    file.write(MARK + np.array([len(windows[0]), vocabulary, len(windows)], "<i4").tobytes())
    file.write(np.array(windows, "<i4").tobytes())


def pack(logits: np.ndarray, sums: np.ndarray) -> np.ndarray:
    """float32 [n, vocabulary] and their log-sums -> uint16 [n, row_length]."""
    highest = logits.max(axis=1)
    lowest = np.maximum(logits.min(axis=1), highest - np.float32(DEPTH))
    step = (highest - lowest) / np.float32(65535)
    rows = np.zeros((len(logits), row_length(logits.shape[1])), "<u2")
    floor = (lowest - sums).astype("<f4")
    rows[:, :4] = np.stack([step.astype("<f4"), floor], axis=1).view("<u2")
    inverse = np.where(step > 0, np.float32(1) / np.where(step > 0, step, np.float32(1)), np.float32(0))
    levels = np.rint((logits - lowest[:, None]) * inverse[:, None])
    rows[:, 4 : 4 + logits.shape[1]] = levels.clip(0, 65535)
    return rows


def unpack(rows: np.ndarray, vocabulary: int) -> np.ndarray:
    """uint16 [n, row_length] -> float32 log-probabilities [n, vocabulary]."""
    scales = np.ascontiguousarray(rows[:, :4]).view("<f4")
    return rows[:, 4 : 4 + vocabulary] * scales[:, :1] + scales[:, 1:]


class Baseline:
    """An open file: `windows`, and take() for distributions in their order."""

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        size = self.path.stat().st_size
        self._file = self.path.open("rb")
        head = self._file.read(len(MARK) + 12)
        if head[: len(MARK)] != MARK or len(head) < len(MARK) + 12:
            self._refuse("it is not a file of distributions; write one with --kl-divergence-base alone")
        context, self.vocabulary, count = (int(n) for n in np.frombuffer(head, "<i4", 3, len(MARK)))
        if context < 2 or count < 1 or self.vocabulary < 1:
            self._refuse("its header is invalid")
        row = 2 * row_length(self.vocabulary)
        whole = len(head) + count * (4 * context + scored(context) * row)
        if size < whole:
            self._refuse(f"it has {size} bytes and should have {whole}: it is incomplete")
        tokens = np.frombuffer(self._file.read(4 * context * count), "<i4")
        self.windows = tokens.reshape(count, context).tolist()

    def _refuse(self, why: str) -> None:
        self._file.close()
        raise UserError(f"{self.path} cannot be used: {why}.")

    def __enter__(self) -> Baseline:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def take(self, count: int) -> np.ndarray:
        """The next `count` distributions: float32 log-probabilities [count, vocabulary]."""
        length = row_length(self.vocabulary)
        rows = np.frombuffer(self._file.read(2 * length * count), "<u2").reshape(count, length)
        return unpack(rows, self.vocabulary)
