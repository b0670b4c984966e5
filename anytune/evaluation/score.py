"""Predictions against the truth, without a model: accuracy, cosine and Jaccard over words."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anytune.errors import UserError
from anytune.evaluation.similarity import jaccard, words
from anytune.evaluation.statistics import classification
from anytune.likelihood.choices import wilson
from anytune.text.reading import read_text
from anytune.text.rows import loads

ANSWERS = ("prediction", "answer", "label", "final_decision", "response", "completion", "output", "text")
MOST_LABELS = 20  # distinct short answers up to which a file of truths is a classification
MOST_BYTES = 256 << 20


def read_answers(path: str | Path) -> dict[str, str]:
    """id -> answer, in the file's order: .json with {id: answer}, JSON or JSONL of strings or objects, or a text file
    with one answer a line. Without ids the line numbers are the ids. Raises UserError naming the line."""
    path = Path(path)
    if path.stat().st_size > MOST_BYTES:
        raise UserError(f"{path} is larger than {MOST_BYTES >> 20} MiB: it is not a list of answers.")
    text = read_text(path)
    name = path.name.lower()
    try:
        if name.endswith(".json"):
            found = loads(text)
            rows = list(found.items()) if isinstance(found, dict) else list(enumerate(found, 1))
        elif name.endswith((".jsonl", ".ndjson")):
            rows = [(n, loads(line)) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
        else:
            lines = text.removesuffix("\n").split("\n")
            rows = [(n, line.removesuffix("\r")) for n, line in enumerate(lines, 1)]
    except (ValueError, RecursionError, TypeError) as error:
        raise UserError(f"{path} is not valid JSON: {error}.") from None
    found = {str(key): _answer(value, f"{path}, entry {key}") for key, value in rows}
    if not any(answer.strip() for answer in found.values()):
        raise UserError(f"{path} holds no answers.")
    return found


def _answer(value: Any, where: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        messages = value.get("messages")
        if isinstance(messages, list) and messages and isinstance(messages[-1], dict):
            value = {"text": messages[-1].get("content")}
        for name in ANSWERS:
            if isinstance(value.get(name), str):
                return value[name]
    raise UserError(
        f"{where} holds no answer: it must be a text, or an object with one of {', '.join(ANSWERS)} or messages."
    )


def pair(predictions: dict[str, str], truths: dict[str, str]) -> list[tuple[str, str]]:
    """(prediction, truth) by id where both files have ids in common, else in order. Raises UserError where one is left
    over."""
    if set(truths) <= set(predictions):
        return [(predictions[key], truth) for key, truth in truths.items()]
    if len(predictions) != len(truths):
        raise UserError(f"Predictions: {len(predictions)}, truths: {len(truths)}; each prediction needs its own.")
    return list(zip(predictions.values(), truths.values(), strict=True))


def score(pairs: Sequence[tuple[str, str]], labels: Sequence[str] | None = None) -> dict[str, Any]:
    """Figures over (prediction, truth) pairs.

    labels: the classes; None: the truths themselves where they are few and short. With classes a prediction's is the
    first label that it names as a word (-1 where it names none) and accuracy is `classification`'s; without, a
    prediction is right if it has the truth's words in the truth's order. cosine: of the counts of words; jaccard: of
    the sets. Raises UserError for a truth that is none of the labels.
    """
    labels = list(labels) if labels else _labels([truth for _, truth in pairs])
    facts: dict[str, Any] = {
        "count": len(pairs),
        "cosine": _mean(cosine(*both) for both in pairs),
        "jaccard": _mean(jaccard(*both) for both in pairs),
    }
    if labels is None:
        right = sum(words(prediction) == words(truth) for prediction, truth in pairs)
        return {
            **facts,
            "accuracy": right / len(pairs),
            "interval": list(wilson(right, len(pairs))),
            "right": right,
            "labels": None,
        }
    first = _first_label(labels)
    truth = [first(text) for _, text in pairs]
    if -1 in truth:
        at = truth.index(-1)
        raise UserError(
            f"Truth {at + 1} ({pairs[at][1][:60]!r}) names none of the labels {', '.join(labels)}: set the labels "
            "with --labels."
        )
    return {**facts, **classification(truth, [first(text) for text, _ in pairs], labels), "labels": labels}


def _labels(truths: Sequence[str]) -> list[str] | None:
    """The distinct truths, if they are single words and few beside their number."""
    found = Counter(truth.strip().rstrip(".").lower() for truth in truths)
    few = len(found) <= min(MOST_LABELS, max(3, len(truths) // 2))
    return sorted(found) if few and all(re.fullmatch(r"[\w-]+", label) for label in found) else None


def _first_label(labels: Sequence[str]) -> Any:
    """text -> number of the label that comes first in it as whole words, -1 for none."""
    numbers = {" ".join(label.lower().split()): n for n, label in enumerate(labels)}
    longest_first = sorted(numbers, key=len, reverse=True)
    found = re.compile(r"(?<![\w-])(" + "|".join(map(re.escape, longest_first)) + r")(?![\w-])")

    def first(text: str) -> int:
        match = found.search(" ".join(text.lower().split()))
        return numbers[match[1]] if match else -1

    return first


def cosine(a: str, b: str) -> float:
    """Of how often each word occurs, 0 to 1; two texts without words are alike."""
    ours, theirs = Counter(words(a)), Counter(words(b))
    if not ours or not theirs:
        return float(ours == theirs)
    common = sum(count * theirs[word] for word, count in ours.items())
    return common / math.sqrt(sum(n * n for n in ours.values()) * sum(n * n for n in theirs.values()))


def _mean(values: Any) -> float:
    found = list(values)
    return sum(found) / len(found)
