"""Training data as records: chats, pairs or text, from JSONL, JSON, plain text or a datasets folder.

A record keeps the line that it came from, so that every complaint can name it. rows.py reads the files.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from anytune.errors import UserError
from anytune.text.given import Rows, place
from anytune.text.record import COLUMNS, OPTIONAL, Record, record_of
from anytune.text.rows import DataFile, dataset_rows

PLAIN_PIECE = 1 << 20  # characters of plain text handed on at once

FORMATS = ("auto", "messages", "sharegpt", "alpaca", "prompt-completion", "text", "plain", "dataset")
LOSS = ("auto", "assistant", "all")  # which tokens are learned, see build.py


def read_records(
    path: str | Path | Rows, format: str = "auto", columns: Mapping[str, str] | None = None
) -> Iterator[Record]:
    """The records of a file or folder, in order. columns: role (COLUMNS) -> name of the column that holds it.

    Raises UserError naming the line for whatever cannot be read as the format, or fits none.
    """
    columns = dict(columns or {})
    if format not in FORMATS:
        raise UserError(f"There is no format {format!r}; there are {', '.join(FORMATS)}.")
    unknown = set(columns) - set(COLUMNS)
    if unknown:
        raise UserError(f"There is no column role {sorted(unknown)[0]!r}; there are {', '.join(COLUMNS)}.")
    if ("completion" in columns) != ("prompt" in columns):
        raise UserError("--prompt-key and --completion-key belong together: give both.")
    if isinstance(path, Rows):
        yield from records(path, path, format, columns)
        return
    if os.fspath(path) != "-":
        path = Path(path)
        if path.is_dir():
            yield from records(path, dataset_rows(path), "auto" if format == "dataset" else format, columns)
            return
        if not path.exists():
            raise UserError(f"The data file {path} does not exist.")
    yield from records_of(DataFile(path, format), format, columns)


def records_of(file: DataFile, format: str, columns: Mapping[str, str]) -> Iterator[Record]:
    """read_records for a file that was opened already."""
    return _plain(file) if file.plain else records(file.path, file.rows(), format, columns)


def records(
    path: str | Path | Rows, rows: Iterable[tuple[int, dict]], format: str, columns: Mapping[str, str]
) -> Iterator[Record]:
    """read_records for rows that are read elsewhere. path: for messages."""
    empty, unseen = True, {role: column for role, column in columns.items() if role in OPTIONAL}
    for line, row in rows:
        empty = False
        unseen = {role: column for role, column in unseen.items() if column not in row}
        try:
            yield record_of(line, row, format, dict(columns))
        except UserError as error:
            raise UserError(f"{place(path, line)}: {error}") from None
    if empty:
        raise UserError(f"{path} contains no records.")
    for role, column in unseen.items():
        raise UserError(f"{path}: no row has the column {column!r} that --{role}-key names: check its spelling.")


def _plain(file: DataFile) -> Iterator[Record]:
    """Stretches of whole lines, each with the number of its first line."""
    parts, size, first, blank = [], 0, 1, True
    for number, line in file.lines():
        blank = blank and not line.strip()
        parts.append(line)
        size += len(line)
        if size >= PLAIN_PIECE:
            yield Record(first, "plain", text="".join(parts))
            parts, size, first = [], 0, number + 1
    if blank:
        raise UserError(f"{file.path} contains no text.")
    if parts:
        yield Record(first, "plain", text="".join(parts))
