"""Figures of a classifier's answers: accuracy, precision, recall, F1, confusion; and whether two differ by luck."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from anytune.likelihood.choices import wilson


def classification(truth: Sequence[int], predicted: Sequence[int], labels: Sequence[str]) -> dict[str, Any]:
    """Figures over all answers. truth: class numbers; predicted: class numbers, -1 for an answer that is none of them.

    accuracy with Wilson's 95 % interval (Wilson 1927); by class precision, recall, F1 and support (how often it is
    right); macro_f1, the F1s' unweighted mean, 0 for a class that is never rightly named; confusion: rows are the
    truth, columns the answers, the last one for none of the classes. Raises ValueError for no answers or lists of
    unequal length.
    """
    true, said = np.asarray(truth, int), np.asarray(predicted, int)
    if true.ndim != 1 or true.shape != said.shape or not true.size:
        raise ValueError("truth and predicted must be equally long and not empty")
    count = len(labels)
    confusion = np.zeros((count, count + 1), int)
    np.add.at(confusion, (true, np.where(said < 0, count, said)), 1)
    classes = {}
    for number, label in enumerate(labels):
        hits = int(confusion[number, number])
        named, support = int(confusion[:, number].sum()), int(confusion[number].sum())
        classes[label] = {
            "precision": hits / named if named else 0.0,
            "recall": hits / support if support else 0.0,
            "f1": 2 * hits / (named + support) if named + support else 0.0,
            "support": support,
        }
    right = int(np.trace(confusion))
    return {
        "accuracy": right / true.size,
        "interval": list(wilson(right, true.size)),
        "right": right,
        "questions": int(true.size),
        "macro_f1": sum(c["f1"] for c in classes.values()) / count,
        "classes": classes,
        "confusion": confusion.tolist(),
        "unanswered": int(confusion[:, count].sum()),
    }


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> dict[str, Any]:
    """The exact test of McNemar (1947) on the same questions: are those that only one gets right evenly shared?

    only_first, only_second: how many questions only that one has right; difference: second's accuracy less first's;
    p_value: two-sided, 2 · P(X ≤ the smaller count) for X ~ Binomial(both, 1/2), at most 1.
    """
    if len(first) != len(second) or not len(first):
        raise ValueError("both must have answered the same questions")
    gained = sum(bool(b) and not a for a, b in zip(first, second, strict=True))
    lost = sum(bool(a) and not b for a, b in zip(first, second, strict=True))
    both = gained + lost
    tail = sum(math.comb(both, k) for k in range(min(gained, lost) + 1))
    return {
        "only_first": lost,
        "only_second": gained,
        "difference": (gained - lost) / len(first),
        "p_value": min(1.0, float(2 * tail / 2**both)) if both < 1000 else _large(gained, lost),
    }


def _large(gained: int, lost: int) -> float:
    """The same p-value where 2^n no longer fits a float, by logarithms."""
    both = gained + lost
    logs = np.array(
        [math.lgamma(both + 1) - math.lgamma(k + 1) - math.lgamma(both - k + 1) for k in range(min(gained, lost) + 1)]
    ) - both * math.log(2)
    return min(1.0, float(2 * np.exp(np.logaddexp.reduce(logs))))
