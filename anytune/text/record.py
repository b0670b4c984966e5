"""One row of data as a record: a chat, a pair of prompt and completion, or text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from anytune.errors import UserError
from anytune.text.columns import Row, blank, listed, pair_flags
from anytune.text.conversation import KNOWN, read_messages
from anytune.text.rows import is_message, kind_of, loads

COLUMNS = ("messages", "text", "prompt", "completion", "system", "tools", "context", "reasoning")
OPTIONAL = ("system", "tools", "context", "reasoning")  # columns that a row may lack though they were named

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
    ("question", "response"),
    ("question", "answers"),
    ("question", "answerKey"),
    ("problem", "solution"),
]
_INDEX = re.compile("[0-9]{1,2}")
_QUESTION_ANSWER = re.compile(
    r"\s*Q(?:uestion)?:\s*(\S.*?)\s*\n\s*A(?:nswer)?:\s*(\S.*?)\s*", re.DOTALL | re.IGNORECASE
)


@dataclass(frozen=True)
class Record:
    """One example as it is in the data. kind: "chat" (messages), "pair" (prompt and completion, with what is
    before them as messages), "text", or "plain" (a stretch of one long text, whose next stretch follows in the next
    record)."""

    line: int
    kind: str
    messages: tuple[Mapping[str, Any], ...] = ()
    tools: list | None = None
    learn_from: int = 0  # chat: index of the first message to learn from
    prompt: str = ""
    completion: str = ""
    reasoning: str = ""  # pair: the thoughts before the completion
    text: str = ""
    columns: tuple[str, ...] = ()
    unused: Mapping[str, bool] = field(default_factory=dict)  # column -> whether it is text
    extra: tuple[str, ...] = ()  # keys of messages without a meaning here, which a template may read
    suggestion: str = ""  # options that would make pairs of this file's columns
    rejected: bool = False  # the data say that this is a bad answer


def record_of(line: int, row: Mapping[str, Any], format: str, columns: Mapping[str, str]) -> Record:
    """The record of a row. Raises UserError for a row that does not fit the format, or fits none."""
    for role, column in columns.items():
        if column not in row and role not in OPTIONAL:
            raise UserError(f"there is no column {column!r} (there are {listed(list(row))}).")
    taken = Row(row, columns, auto=not {"prompt", "text"} & columns.keys())
    record = _made(line, taken, format, columns)
    idle = next(
        (role for role in ("context", "reasoning") if columns.get(role) in taken and columns[role] not in taken.taken),
        None,
    )
    if idle:
        raise UserError(f"--{idle}-key needs a prompt and a completion, and this row has none.")
    rejected = record.kind != "text" and taken.rejected()
    unused = taken.unused("")
    unused = taken.unused("\n".join(_words(record))) if unused else {}
    pair = pair_flags(taken, next(iter(taken.taken), "")) if record.kind == "text" else ""
    extra = dict.fromkeys(
        key for message in record.messages for key, value in message.items() if key not in KNOWN and not blank(value)
    )
    return replace(record, columns=tuple(row), unused=unused, extra=tuple(extra), suggestion=pair, rejected=rejected)


def _words(record: Record) -> Iterable[str]:
    """All that a record says."""
    yield from (record.text, record.prompt, record.completion, record.reasoning)
    waiting: list[Any] = [*record.messages, record.tools]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, Mapping):
            waiting += value.values()
        elif isinstance(value, list | tuple):
            waiting += value


def _made(line: int, row: Row, format: str, columns: Mapping[str, str]) -> Record:
    if "messages" in columns or format in ("messages", "sharegpt"):
        return _chat(line, row, columns.get("messages") or _first(row, _MESSAGES, "messages"))
    if "prompt" in columns:
        return _pair(line, row, columns["prompt"], columns["completion"])
    if "text" in columns or format == "text":
        return _text(line, row, columns.get("text") or _first(row, _TEXT, "text"))
    if format == "alpaca":
        return _pair(line, row, "instruction", "output", chat=True)
    if format == "prompt-completion":
        pair = next((pair for pair in _PAIRS if pair[0] in row and pair[1] in row), None)
        if pair is None:
            raise UserError(
                f"there is no prompt and completion (the columns are {listed(list(row.values))}); name them with "
                "--prompt-key and --completion-key."
            )
        return _pair(line, row, *pair)
    return _recognised(line, row)


def _recognised(line: int, row: Row) -> Record:
    for column in _MESSAGES:
        if isinstance(row.get(column), list | str) and row.get(column):
            return _chat(line, row, column)
    if "instruction" in row and "output" in row:
        return _pair(line, row, "instruction", "output", chat=True)
    if "text" not in row:
        for pair in _PAIRS:
            if pair[0] in row and pair[1] in row:
                return _pair(line, row, *pair)
    if "text" not in row and isinstance(row.get("subject"), str) and isinstance(row.get("body"), str):
        return _mail(line, row)
    if is_message(row.values):
        raise UserError(
            "this is a single message of a chat: put all of a chat's messages into one line, as "
            '{"messages": [ … ]}, or name the column of text with --text-key.'
        )
    for column in _TEXT:
        if isinstance(row.get(column), str):
            return _text(line, row, column)
    if "chosen" in row and "rejected" in row:
        chats = isinstance(row.get("chosen"), list)
        how = "--messages-key chosen" if chats else "--prompt-key prompt --completion-key chosen"
        raise UserError(f"this is a pair of a chosen and a rejected answer: to learn the chosen one, use {how}.")
    if empty := next((column for column in _MESSAGES if row.get(column) in ([], "")), None):
        raise UserError(f"{empty!r} is empty: there is nothing to learn.")
    raise UserError(
        f"the columns {listed(list(row.values))} match no known format; name them with --messages-key, --text-key, "
        "or --prompt-key and --completion-key."
    )


def _chat(line: int, row: Row, column: str) -> Record:
    messages = row.take(column)
    if isinstance(messages, str):
        try:
            messages = loads(messages)
        except (ValueError, RecursionError):
            raise UserError(f"{column!r} is text, but not valid JSON of messages, or has a duplicate key.") from None
    if messages == []:
        raise UserError(f"{column!r} is empty: there is nothing to learn.")
    if not isinstance(messages, list):
        raise UserError(f"{column!r} must be a list of messages, not {kind_of(messages)}.")
    return Record(line, "chat", tuple(read_messages(messages, row.system())), row.tools())


def _pair(line: int, row: Row, prompt_column: str, completion_column: str, chat: bool = False) -> Record:
    """A prompt and its completion, or two lists of messages. chat: earlier answers are learned, too."""
    prompt, completion = row.get(prompt_column), row.get(completion_column)
    if isinstance(prompt, list) and isinstance(completion, list) and completion:
        row.taken |= {prompt_column, completion_column}
        found = read_messages([*prompt, *completion], row.system())
        return Record(line, "chat", tuple(found), row.tools(), len(found) - len(completion))
    row.taken |= {prompt_column, completion_column}
    letters = row.choices()
    prompt = _question(row, prompt_column, letters)
    completion = _answer(row, completion_column, letters)
    if chat and not prompt.strip():
        raise UserError(f"{prompt_column!r} is empty: there is nothing to answer.")
    if not completion:
        raise UserError(f"{completion_column!r} is empty: there is nothing to learn.")
    before, reasoning, tools = (*row.system(), *row.history()), row.reasoning(), row.tools()
    if not chat:
        return Record(line, "pair", before, tools, prompt=prompt, completion=completion, reasoning=reasoning)
    answer = {"role": "assistant", "content": completion} | ({"reasoning_content": reasoning} if reasoning else {})
    return Record(line, "chat", (*before, {"role": "user", "content": prompt}, answer), tools)


def _question(row: Row, column: str, letters: Mapping[str, str]) -> str:
    """The prompt with what it is about: a context before it (behind an instruction), an input behind it, choices."""
    own = row.text(column)
    parts = [own] if own.strip() else []
    contexts = row.contexts(own)
    parts = [*parts, *contexts] if column == "instruction" else [*contexts, *parts]
    if row.auto and column != "input" and row.get("input") not in (None, "") and "input" not in row.taken:
        more = row.text("input")
        parts += [more] if more.strip() else []
    if letters:
        parts.append("\n".join(f"{letter}. {text}" for letter, text in letters.items()))
    return "\n\n".join(parts) if parts != [own] else own


def _answer(row: Row, column: str, letters: Mapping[str, str]) -> str:
    """The completion: text, the number of one of the choices, or the first of SQuAD's answers."""
    value = row.get(column)
    if isinstance(value, dict) and isinstance(value.get("text"), list) and column == "answers":
        value = next(iter(value["text"]), "")
    if letters and (number := _number(value, letters)) is not None:
        if not 0 <= number < len(letters):
            raise UserError(f"{column!r} is {value}, but there are {len(letters)} choices, counted from 0.")
        return list(letters)[number]
    if not isinstance(value, str):
        raise UserError(f"{column!r} must be text, not {kind_of(value)}.")
    return value


def _number(value: Any, letters: Mapping[str, str]) -> int | None:
    """The number that an answer is, as a table may write it ("1", 1.0); None for a choice's letter or words."""
    if isinstance(value, str):
        own = value.strip()
        index = int(own) if _INDEX.fullmatch(own) else len(letters)
        said = re.compile(rf"\b{re.escape(own)}\b")
        words = any(said.search(text) for pair in letters.items() for text in pair)
        return index if index < len(letters) and not words else None
    whole = isinstance(value, int) or isinstance(value, float) and value.is_integer()
    return int(value) if whole and not isinstance(value, bool) else None


def question_and_answer(text: str) -> tuple[str, str] | None:
    """The two parts of a text that is a question and its answer, marked as such ("Q: … A: …"); None for others."""
    found = _QUESTION_ANSWER.fullmatch(text)
    return (found[1], found[2]) if found else None


def _mail(line: int, row: Row) -> Record:
    """A mail as text: its subject, an empty line, its body."""
    subject, body = row.text("subject").strip(), row.text("body")
    if not body.strip():
        raise UserError("'body' is empty: there is nothing to learn.")
    return Record(line, "text", text=f"Subject: {subject}\n\n{body}" if subject else body)


def _text(line: int, row: Row, column: str) -> Record:
    text = row.text(column)
    if not text:
        raise UserError(f"{column!r} is empty: there is nothing to learn.")
    return Record(line, "text", text=text)


def _first(row: Row, names: tuple[str, ...], what: str) -> str:
    found = next((name for name in names if name in row), None)
    if found is None:
        raise UserError(
            f"there is no column {what!r} (there are {listed(list(row.values))}); name it with --{what}-key."
        )
    return found
