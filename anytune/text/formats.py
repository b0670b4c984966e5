"""Training data as records: chats, pairs or text, from JSONL, JSON, plain text or a datasets folder.

A record keeps the line that it came from, so that every complaint can name it. rows.py reads the files.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anytune.errors import UserError
from anytune.text.rows import DataFile, dataset_rows, kind_of

PLAIN_PIECE = 1 << 20  # characters of plain text handed on at once

FORMATS = ("auto", "messages", "sharegpt", "alpaca", "prompt-completion", "text", "plain", "dataset")
COLUMNS = ("messages", "text", "prompt", "completion", "system", "tools")

# Columns by which a format is recognised, the first that is there.
_MESSAGES, _TEXT = ("messages", "conversations", "conversation"), ("text", "content")
_PAIRS = [
    ("prompt", "completion"),
    ("prompt", "response"),
    ("prompt", "output"),
    ("question", "answer"),
    ("query", "response"),
    ("input", "output"),
    ("instruction", "output"),
    ("instruction", "response"),
]
_ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "bing": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function": "tool",
    "function_response": "tool",
    "developer": "developer",
}
_PROMPT_LIKE = ("prompt", "question", "instruction", "query", "input", "problem", "title")
_COMPLETION_LIKE = ("completion", "answer", "response", "output", "solution", "label", "target", "summary")


@dataclass(frozen=True)
class Record:
    """One example as it stands in the data. kind: "chat" (messages), "pair" (prompt and completion), "text",
    or
    "plain" (a stretch of one long text, whose next stretch follows in the next record)."""

    line: int
    kind: str
    messages: tuple[Mapping[str, Any], ...] = ()
    tools: list | None = None
    learn_from: int = 0  # chat: index of the first message to learn from
    prompt: str = ""
    completion: str = ""
    text: str = ""
    columns: tuple[str, ...] = ()
    suggestion: str = ""  # text: options that would make pairs of this file's columns


def read_records(
    path: str | Path, format: str = "auto", columns: Mapping[str, str] | None = None
) -> Iterator[Record]:
    """The records of a file or folder, in order. columns: role (COLUMNS) -> name of the column that holds it.

    Raises UserError naming the line for whatever cannot be read as the format, or fits none.
    """
    columns = dict(columns or {})
    if format not in FORMATS:
        raise UserError(f"There is no format {format!r}; there are {', '.join(FORMATS)}.")
    unknown = set(columns) - set(COLUMNS)
    if unknown:
        raise UserError(
            f"There is no role {sorted(unknown)[0]!r} for a column; there are {', '.join(COLUMNS)}."
        )
    if ("completion" in columns) != ("prompt" in columns):
        raise UserError("--prompt-key and --completion-key belong together: give both.")
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


def records(path: str | Path, rows: Iterable[tuple[int, dict]], format: str,
            columns: Mapping[str, str]) -> Iterator[Record]:
    """read_records for rows that are read elsewhere. path: for messages."""
    empty = True
    for line, row in rows:
        empty = False
        try:
            yield _record(line, row, format, dict(columns))
        except UserError as error:
            raise UserError(f"{path}, line {line}: {error}") from None
    if empty:
        raise UserError(f"{path} holds no records.")


def _plain(file: DataFile) -> Iterator[Record]:
    """Stretches of whole lines, each with the number of its first line."""
    parts, size, first = [], 0, 1
    for number, line in file.lines():
        parts.append(line)
        size += len(line)
        if size >= PLAIN_PIECE:
            yield Record(first, "plain", text="".join(parts))
            parts, size, first = [], 0, number + 1
    if parts:
        yield Record(first, "plain", text="".join(parts))
    elif first == 1:
        raise UserError(f"{file.path} is empty.")


def _record(line: int, row: dict, format: str, columns: dict[str, str]) -> Record:
    for role, column in columns.items():
        if column not in row and role not in ("system", "tools"):
            raise UserError(f"there is no column {column!r} (there are {_listed(row)}).")
    tools = _tools(row.get(columns.get("tools", "tools")))
    system = row.get(columns.get("system", "system"))
    system = [{"role": "system", "content": system}] if isinstance(system, str) and system.strip() else []
    if "messages" in columns or format in ("messages", "sharegpt"):
        return _chat(line, row, columns.get("messages") or _first(row, _MESSAGES, "messages"), tools, system)
    if "prompt" in columns:
        return _pair(line, row, columns["prompt"], columns["completion"], tools, system)
    if "text" in columns or format == "text":
        return _text(line, row, columns.get("text") or _first(row, _TEXT, "text"))
    if format == "alpaca":
        return _alpaca(line, row, tools, system)
    if format == "prompt-completion":
        pair = next((pair for pair in _PAIRS if pair[0] in row and pair[1] in row), None)
        if pair is None:
            raise UserError(
                f"there is no prompt and completion (the columns are {_listed(row)}); name them with "
                "--prompt-key and --completion-key."
            )
        return _pair(line, row, *pair, tools, system)
    return _recognised(line, row, tools, system)


def _recognised(line: int, row: dict, tools, system) -> Record:
    for column in _MESSAGES:
        if isinstance(row.get(column), list | str) and row[column]:
            return _chat(line, row, column, tools, system)
    if "instruction" in row and "output" in row:
        return _alpaca(line, row, tools, system)
    if "text" not in row:
        for pair in _PAIRS:
            if pair[0] in row and pair[1] in row:
                return _pair(line, row, *pair, tools, system)
    for column in _TEXT:
        if isinstance(row.get(column), str):
            return _text(line, row, column)
    raise UserError(
        f"the columns {_listed(row)} fit no known format; name them with --messages-key, --text-key, or "
        "--prompt-key and --completion-key."
    )


def _chat(line: int, row: dict, column: str, tools, system: list) -> Record:
    messages = row.get(column)
    if isinstance(messages, str):
        try:
            messages = json.loads(messages)
        except (ValueError, RecursionError):
            pass
    if not isinstance(messages, list) or not messages:
        raise UserError(f"{column!r} must be a list of messages, not {kind_of(messages)}.")
    found = [_message(m, k) for k, m in enumerate(messages, 1)]
    if system and found[0]["role"] != "system":
        found = system + found
    return Record(line, "chat", tuple(found), tools, columns=tuple(row))


def _message(message: Any, number: int) -> dict:
    """OpenAI's form, or ShareGPT's (from, value)."""
    if not isinstance(message, dict):
        raise UserError(f"message {number} must be an object, not {kind_of(message)}.")
    role = message.get("role", message.get("from"))
    if not isinstance(role, str) or role.lower() not in _ROLES:
        raise UserError(f"message {number} has the role {role!r}; known are {', '.join(_ROLES)}.")
    out = {key: value for key, value in message.items() if key not in ("from", "value") and value is not None}
    out["role"] = _ROLES[role.lower()]
    content = message.get("content", message.get("value"))
    if content is None and not message.get("tool_calls"):
        raise UserError(f"message {number} has no content.")
    return out | {"content": content}


def _alpaca(line: int, row: dict, tools, system) -> Record:
    instruction, output, more = row.get("instruction"), row.get("output"), row.get("input")
    for name, value in (("instruction", instruction), ("output", output)):
        if not isinstance(value, str) or not value:
            raise UserError(f"{name!r} must be text, not {kind_of(value)}.")
    if isinstance(more, str) and more.strip():
        instruction += "\n\n" + more
    messages = (*system, {"role": "user", "content": instruction}, {"role": "assistant", "content": output})
    return Record(line, "chat", messages, tools, columns=tuple(row))


def _pair(line: int, row: dict, prompt_column: str, completion_column: str, tools, system) -> Record:
    prompt, completion = row.get(prompt_column), row.get(completion_column)
    if isinstance(prompt, list) and isinstance(completion, list) and completion:
        messages = [*system, *(_message(m, k) for k, m in enumerate([*prompt, *completion], 1))]
        return Record(
            line, "chat", tuple(messages), tools, len(messages) - len(completion), columns=tuple(row)
        )
    for name, value in ((prompt_column, prompt), (completion_column, completion)):
        if not isinstance(value, str):
            raise UserError(f"{name!r} must be text, not {kind_of(value)}.")
    if not completion:
        raise UserError(f"{completion_column!r} is empty: there is nothing to learn.")
    return Record(
        line, "pair", tuple(system), tools, prompt=prompt, completion=completion, columns=tuple(row)
    )


def _text(line: int, row: dict, column: str) -> Record:
    text = row.get(column)
    if not isinstance(text, str):
        raise UserError(f"{column!r} must be text, not {kind_of(text)}.")
    if not text:
        raise UserError(f"{column!r} is empty: there is nothing to learn.")
    return Record(line, "text", text=text, columns=tuple(row), suggestion=_suggestion(row, column))


def _suggestion(row: dict, text_column: str) -> str:
    """--prompt-key … --completion-key … for the columns that look like it, or ""."""
    texts = [name for name, value in row.items() if isinstance(value, str) and value and name != text_column]
    prompt = next((name for like in _PROMPT_LIKE for name in texts if name.lower() == like), None)
    completion = next(
        (name for like in _COMPLETION_LIKE for name in texts if name.lower() == like and name != prompt), None
    )
    return f"--prompt-key {prompt} --completion-key {completion}" if prompt and completion else ""


def _tools(value: Any) -> list | None:
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise UserError("the tools are not valid JSON.") from None
    if value in (None, "", [], {}):
        return None
    if not isinstance(value, list):
        raise UserError(f"the tools must be a list, not {kind_of(value)}.")
    return value


def _first(row: dict, names: tuple[str, ...], what: str) -> str:
    found = next((name for name in names if name in row), None)
    if found is None:
        raise UserError(f"there is no column {what!r} (there are {_listed(row)}); name it with --{what}-key.")
    return found


def _listed(row: dict) -> str:
    names = [str(name)[:40] for name in list(row)[:12]]
    return ", ".join(names) + (", …" if len(row) > 12 else "") if names else "none"
