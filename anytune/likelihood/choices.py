"""Questions with given answers: the ending that the model finds likeliest, per token, is its choice.

Two file formats: six lines a task as llama.cpp's --hellaswag reads them (context, number of the right ending, four
endings), and JSON lines {"context": …, "choices": [… , …], "answer": number}.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from anytune.errors import UserError
from anytune.likelihood.windows import Forward, logsumexp
from anytune.text.reading import Stream
from anytune.text.rows import json_rows

if TYPE_CHECKING:
    from anytune.adapter.adapter import Adapter
    from anytune.model import Model

ENDINGS = 4
SURE = 1.95996398454  # standard deviations of a 95 % interval


@dataclass(frozen=True)
class Task:
    """One question: where it is in its file, the text before, the endings, the number of the right one from 0."""

    line: int
    context: str
    choices: tuple[str, ...]
    answer: int


def read_hellaswag(text: str, name: str) -> list[Task]:
    """Six lines a task. Raises UserError with the line."""
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines or len(lines) % (ENDINGS + 2):
        raise UserError(
            f"{name} has {len(lines)} lines, not a multiple of {ENDINGS + 2}: a task is its context, the index of "
            f"the right ending, and {ENDINGS} endings."
        )
    return [
        _task(i + 1, lines[i], lines[i + 2 : i + 2 + ENDINGS], lines[i + 1], name)
        for i in range(0, len(lines), ENDINGS + 2)
    ]


def read_choices(text: str, name: str) -> list[Task]:
    """A JSON object a line, or an array of them. Raises UserError with the line."""
    tasks = []
    for number, row in json_rows(Stream([text]), name):
        context, choices, answer = (row.get(key) for key in ("context", "choices", "answer"))
        texts = [context, *choices] if isinstance(choices, list) else [None]
        if not all(isinstance(text, str) for text in texts):
            raise UserError(
                f'{name}, line {number}: a task is {{"context": text, "choices": [texts], "answer": number}}.'
            )
        tasks.append(_task(number, context, choices, answer, name))
    if not tasks:
        raise UserError(f"{name} has no tasks.")
    return tasks


def _task(line: int, context: str, choices: Sequence[str], answer: Any, name: str) -> Task:
    try:
        number = int(answer)
    except (ValueError, TypeError):
        number = -1
    if len(choices) < 2 or not 0 <= number < len(choices):
        raise UserError(
            f"{name}, line {line}: {answer!r} is not the index of one of at least two answers, from 0 to "
            f"{len(choices) - 1}."
        )
    return Task(line, context, tuple(choices), number)


def score_choices(
    model: Model,
    tasks: Sequence[Task],
    adapter: Adapter | None = None,
    *,
    batch: int = 2048,
    progress: Callable[[int, int, float], None] | None = None,
) -> dict[str, Any]:
    """How often the likeliest ending is the right one, with a 95 % interval (Wilson's).

    An ending's likelihood is the mean over the tokens in which it differs from the others (accuracy), or their sum
    (accuracy_sum). progress: called with (tasks done, of how many, accuracy so far in percent). Raises UserError.
    """
    prepared = [_prepare(model, task) for task in tasks]
    longest = max(len(ids) for sequences, _ in prepared for ids in sequences)
    forward = Forward(model, longest, adapter)
    chosen: list[tuple[int, int]] = []
    right = right_sum = 0
    waiting: list[int] = []
    held = 0
    for number, (sequences, _) in enumerate(prepared):
        waiting.append(number)
        held += sum(map(len, sequences))
        if held < batch and number < len(prepared) - 1:
            continue
        for task, totals, counts in _scores(forward, [prepared[i] for i in waiting], waiting):
            means = totals / counts
            chosen.append((int(means.argmax()), int(totals.argmax())))
            right += chosen[-1][0] == tasks[task].answer
            right_sum += chosen[-1][1] == tasks[task].answer
        waiting, held = [], 0
        if progress is not None:
            progress(len(chosen), len(tasks), 100 * right / len(chosen))
    low, high = wilson(right, len(tasks))
    return {
        "accuracy": right / len(tasks),
        "interval": [low, high],
        "accuracy_sum": right_sum / len(tasks),
        "tasks": len(tasks),
        "right": right,
        "choices": [mean for mean, _ in chosen],
    }


def _prepare(model: Model, task: Task) -> tuple[list[list[int]], int]:
    """(token ids of context and each ending, how many they have in common at the start)."""
    sequences = [model.tokenize(f"{task.context} {choice}") for choice in task.choices]
    shortest = min(map(len, sequences))
    common = next((i for i in range(shortest) if len({ids[i] for ids in sequences}) > 1), shortest - 1)
    longest = max(map(len, sequences))
    if common < 1:
        raise UserError(f"The task on line {task.line} has no context before its answers.")
    if longest > model.config.context:
        raise UserError(
            f"The task on line {task.line} has {longest} tokens, and the model's context is {model.config.context}."
        )
    return sequences, common


def _scores(forward: Forward, prepared: list[tuple[list[list[int]], int]], numbers: list[int]):
    """(task, sum of log-probabilities of each ending [choices], tokens of each)."""
    flat = [ids for sequences, _ in prepared for ids in sequences]
    starts = np.cumsum([0, *map(len, flat)])
    common = [shared for sequences, shared in prepared for _ in sequences]
    rows = [np.arange(start + c - 1, start + len(ids) - 1) for start, ids, c in zip(starts, flat, common, strict=False)]
    targets = np.concatenate([np.asarray(ids[c:]) for ids, c in zip(flat, common, strict=True)])
    found = np.empty(len(targets))
    for at, logits in forward.logits(forward.hidden(flat), np.concatenate(rows)):
        wanted = targets[at : at + len(logits)]
        found[at : at + len(logits)] = logits[np.arange(len(wanted)), wanted] - logsumexp(logits)
    counts = np.array([len(part) for part in rows])
    sums = np.add.reduceat(found, np.concatenate([[0], np.cumsum(counts)[:-1]]))
    at = 0
    for number, (sequences, _) in zip(numbers, prepared, strict=True):
        yield number, sums[at : at + len(sequences)], counts[at : at + len(sequences)]
        at += len(sequences)


def wilson(right: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share: (low, high), 0 <= low <= share <= high <= 1 (rounding would leave that)."""
    share, z = right / count, SURE**2 / count
    half = SURE * np.sqrt(share * (1 - share) / count + z / (4 * count))
    low, high = ((share + z / 2 + side) / (1 + z) for side in (-half, half))
    return min(max(float(low), 0.0), share), max(min(float(high), 1.0), share)
