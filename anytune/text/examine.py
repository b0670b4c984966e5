"""A data file read to its end whatever is wrong in it: the examples that are good, and every problem with its line."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from anytune.errors import UserError
from anytune.text import formats
from anytune.text.build import _Work
from anytune.text.dataset import Dataset
from anytune.text.formats import Record
from anytune.text.reading import Stream
from anytune.text.rows import DataFile, json_rows

WHOLE = 1 << 30  # a context that cuts nothing


def examine(
    path: str | Path,
    tokenizer: Any,
    template: Any,
    *,
    context: int,
    loss: str = "auto",
    format: str = "auto",
    columns: dict[str, str] | None = None,
    overflow: str | None = None,
    most: int = 1000,
) -> tuple[Dataset | None, list[dict[str, Any]]]:
    """(examples that are good, whole, and None if there are none; at most `most` problems as {line, problem}).

    Chats, pairs and rows of text keep all their tokens, so that lengths can be compared with any context; running text
    is cut every `context` tokens. What is wrong with the file as a whole is a problem of line 0.
    """
    path, problems = Path(path), []
    work = None
    try:
        file = DataFile(path, format)
        work = _Work(tokenizer, template, context if file.plain else WHOLE, loss, overflow)
        work.path, work.file = path, 0
        for line, record in _records(file, format, dict(columns or {})):
            if isinstance(record, str):
                problems.append({"line": line, "problem": record})
            else:
                try:
                    work.take(record)
                except UserError as error:
                    problems.append({"line": record.line, "problem": bare(str(error), path)})
            if len(problems) >= most:
                break
        work.end_of_file()
    except UserError as error:
        problems.append({"line": 0, "problem": bare(str(error), path)})
    try:
        return (work.finish([path]) if work is not None else None), problems
    except UserError as error:
        if not problems:
            problems.append({"line": 0, "problem": bare(str(error), path)})
        return None, problems


def _records(file: DataFile, format: str, columns: dict[str, str]) -> Iterator[tuple[int, Record | str]]:
    """(line, record or what is wrong with the line)."""
    path = Path(file.path)
    if file.plain or not line_by_line(path):
        for record in formats.records_of(file, format, columns):
            yield record.line, record
        return
    for line, text in file.lines():
        if not text.strip():
            continue
        try:
            rows = [(line, row) for _, row in json_rows(Stream([text]), path)]
            yield from ((line, record) for record in formats.records(path, rows, format, columns))
        except UserError as error:
            yield line, bare(str(error), path)


def line_by_line(path: Path, looks: int = 20) -> bool:
    """Whether a file of JSON has an object on each line: at least one of the first ones is whole by itself."""
    for _, text in itertools.islice(DataFile(path, "plain").lines(), looks):
        if text.lstrip("\ufeff \t").startswith("{"):
            try:
                return bool(list(json_rows(Stream([text]), path)))
            except UserError:
                continue
        elif text.lstrip("\ufeff \t\r\n").startswith("["):
            return False
    return False


def columns_of(path: str | Path, count: int = 5) -> list[dict[str, Any]]:
    """The first rows of a file as they are, for a person to name columns by; [] for running text. UserError."""
    file = DataFile(path)
    return [] if file.plain else [row for _, row in itertools.islice(file.rows(), count)]


def bare(text: str, path: Path) -> str:
    """A sentence without the file and line before it: those are shown separately."""
    for name in (str(path), path.name):
        if text.startswith(name):
            text = text.removeprefix(name).lstrip(", ")
            if text.startswith("line "):
                text = text.partition(": ")[2]
            break
    return text.lstrip(": ")
