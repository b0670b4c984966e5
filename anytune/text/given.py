"""Rows that are handed over in Python, in the place of a file: dicts, or an object of the `datasets` library."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from anytune.errors import UserError

MAX_DEPTH = 64  # of lists and dicts in one another


class Rows:
    """Something that yields dicts each time it is iterated over. In messages, and in place of a path, it appears as
    `name`."""

    name = "the data"

    def __init__(self, source: Iterable[Mapping[str, Any]]):
        self.source = source

    def __str__(self) -> str:
        return self.name

    def __iter__(self) -> Iterator[tuple[int, dict]]:
        """(number from 1, row) in JSON's types. Raises UserError for a row that is no dict."""
        try:
            for number, row in enumerate(self.source, 1):
                if not isinstance(row, Mapping):
                    raise UserError(f"{self}, row {number} is a {type(row).__name__}, but must be a dict.")
                yield number, _plain(row, 0)
        except RecursionError:
            raise UserError(f"{self} nests too deeply.") from None


def sources(data: Any) -> list[Path | Rows]:
    """What the data of a run is: paths, or rows. data: a path, or an iterable of paths, or of dicts. An iterator is
    read once and kept. Raises UserError for anything else."""
    if isinstance(data, str | os.PathLike):
        return [Path(data)]
    if isinstance(data, Rows):
        return [data]
    if isinstance(data, Mapping):
        raise UserError(
            f"data is a {type(data).__name__} of several splits: give one of them, such as data[{next(iter(data))!r}]."
            if data and all(not isinstance(part, str | int | float | list | None) for part in data.values())
            else "data is a single dict: give a list of dicts, one per example."
        )
    if hasattr(data, "to_dict") and hasattr(data, "iloc"):
        raise UserError("data is a DataFrame: give its rows, data.to_dict('records').")
    if not isinstance(data, Iterable):
        raise UserError(
            f"data is a {type(data).__name__}: give a path, a list of paths, or an iterable of dicts, one per example."
        )
    if not hasattr(data, "column_names"):  # a datasets object reads its rows from the disk, as often as asked
        data = list(data)
        if data and all(isinstance(item, str | os.PathLike) for item in data):
            return [Path(item) for item in data]
        if any(isinstance(item, Rows) for item in data):
            return [part for item in data for part in sources(item)]
    return [Rows(data)]


def place(name: Any, number: int) -> str:
    """'file, line n' or 'the data, row n', for messages. name: a path, or Rows, or what either is called."""
    return f"{name}, {'row' if str(name) == Rows.name else 'line'} {number}"


def _plain(value: Any, depth: int) -> Any:
    """`value` with dicts, lists and numbers as JSON has them; what JSON has not stays what it is, to be refused where
    it matters."""
    if depth > MAX_DEPTH:
        raise RecursionError
    if isinstance(value, Mapping):
        return {str(key): _plain(item, depth + 1) for key, item in value.items()}
    if hasattr(value, "tolist"):  # NumPy's
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(item, depth + 1) for item in value]
    return value
