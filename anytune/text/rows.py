"""The rows of a data file, each with the number of the line on which it begins.

JSON is one object a line, or arrays of them, or values over several lines, one behind another. An array (or a line that
is a list) whose elements are messages is one chat.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from anytune.errors import UserError
from anytune.text import reading
from anytune.text.reading import WHITE, Stream

NAMES = (".jsonl", ".json", ".ndjson")
_OTHERS = (".csv", ".tsv", ".parquet", ".arrow", ".xlsx", ".zip", ".npz", ".pkl", ".pt")
# How text begins that is meant as JSON, whatever the file is called: an object with a key, in arrays or alone.
_JSON = re.compile(r'(?:\[\s*(?:\]\s*)?)*\{\s*(?:\}|"(?:[^"\\\n]|\\.)*"\s*:)')
_LITERAL = len("-Infinity")  # the longest that may be cut off by the end of what has been read


class DataFile:
    """A data file that was opened and looked at, and is still to be read. plain: it is text, else rows of JSON.

    format: one of formats.FORMATS, which may name what is not to be guessed. Raises UserError.
    """

    def __init__(self, path: str | Path, format: str = "auto") -> None:
        self.path, self._first = path, []
        name = Path(path).name.lower().removesuffix(".gz")
        if name.endswith(_OTHERS) and format != "plain":
            raise UserError(f"{path} is of an unsupported kind: convert it to JSONL, one object per line.")
        self.stream = Stream(reading.pieces(path))
        self.plain = format == "plain" or (
            format == "auto" and not name.endswith(NAMES) and not _JSON.match(self.stream.beginning())
        )
        self._rows = iter(()) if self.plain else json_rows(self.stream, path)

    def lines(self) -> Iterator[tuple[int, str]]:
        return reading.lines(self.stream, self.path)

    def rows(self) -> Iterator[tuple[int, dict]]:
        return itertools.chain(self._first, self._rows)

    def first(self) -> dict:
        """The first row, which is still to be taken; {} if there is none."""
        if not self._first:
            self._first = list(itertools.islice(self._rows, 1))
        return self._first[0][1] if self._first else {}


def json_rows(stream: Stream, name: str | Path) -> Iterator[tuple[int, dict]]:
    """(line, object) of every row in a text. name: of the file, for messages.

    Raises UserError naming the line for what is no JSON, is cut off, or holds a key twice.
    """
    if stream.beginning().startswith("["):  # not by lines: all of it may be one
        yield from _Values(stream, name, 1).rows()
        return
    numbered, first = reading.lines(stream, name), True
    for number, line in numbered:
        text = line.strip(WHITE)
        if not text:
            continue
        try:
            value = _DECODER.decode(text)
        except (ValueError, RecursionError) as error:
            if isinstance(error, json.JSONDecodeError) and error.msg == "Extra data":  # files that were joined
                yield from _Values([text], name, number).rows()
                continue
            if first and text[0] == "{" and _unfinished(error, text):  # a value over several lines
                yield from _Values(itertools.chain([line], (part for _, part in numbered)), name, number).rows()
                return
            raise _refusal(
                error,
                f"{name}, line {number}",
                f" at character {getattr(error, 'colno', 0)}",
                "; each line must hold one object",
            ) from None
        first = False
        yield number, _row(value, text, f"{name}, line {number}")


class _Values:
    """JSON values one behind another in a text that comes in pieces; `line` is that of the next character."""

    def __init__(self, pieces: Iterable[str], name: str | Path, line: int) -> None:
        self.pieces, self.name, self.line, self.buffer, self.at = iter(pieces), name, line, "", 0

    def rows(self) -> Iterator[tuple[int, dict]]:
        while self.next():
            if self.next() == "[":
                yield from self.array()
            else:
                number = self.line
                yield number, _row(*self.value(), f"{self.name}, line {number}")

    def array(self) -> Iterator[tuple[int, dict]]:
        """The rows of an array: its elements, or all of it, if they are the messages of one chat."""
        begin, chat, texts, size = self.line, [], [], 0
        self.at += 1
        if self.next() == "]":
            self.at += 1
            return
        for count in itertools.count():
            if self.next() == "" and count:
                break
            number = self.line
            value, text = self.value(begin)
            if chat or (not count and is_message(value)):
                chat.append(value)
                texts.append(text)
                size += len(text)
                if size > reading.LINE_LIMIT:
                    raise self.failed(f"the chat is longer than {reading.LINE_LIMIT >> 20} MiB")
            else:
                yield number, _row(value, text, f"{self.name}, line {number}")
            mark = self.next()
            if mark not in ("", ",", "]"):
                raise self.failed("not valid JSON (expected ',' or ']' after an element of the array)")
            self.at += 1
            if mark == "]":
                if chat:
                    yield begin, _row(chat, "".join(texts), f"{self.name}, line {begin}")
                return
            if not mark:
                break
        raise self.failed(f"the array that begins on line {begin} is not closed: the file is truncated")

    def next(self) -> str:
        """The next character that is not blank, which is still to be taken; "" at the end."""
        while True:
            while self.at < len(self.buffer) and (char := self.buffer[self.at]) in WHITE:
                self.line += char == "\n"
                self.at += 1
            if self.at < len(self.buffer):
                return self.buffer[self.at]
            if not self.more():
                return ""

    def value(self, array: int = 0) -> tuple[Any, str]:
        """The value that begins here, and its text. array: the line on which the array begins that it is in."""
        while True:
            try:
                value, end = _DECODER.raw_decode(self.buffer, self.at)
                break
            except (ValueError, RecursionError) as error:
                # nothing else than these begins what a row may hold
                unfinished = self.buffer[self.at : self.at + 1] in ("", "{", "[", '"') and _unfinished(
                    error, self.buffer
                )
                if unfinished and self.more():
                    continue
                at = self.line
                if isinstance(error, json.JSONDecodeError):
                    at += self.buffer.count("\n", self.at, error.pos)
                if unfinished:
                    raise self.failed(
                        f"{f'the array that begins on line {array}' if array else 'this value'} is not closed: the "
                        "file is truncated"
                    ) from None
                raise _refusal(error, f"{self.name}, line {at}") from None
        text = self.buffer[self.at : end]
        self.line += text.count("\n")
        self.at = end
        return value, text

    def more(self) -> bool:
        """Read on, as much again as is held; False if there is nothing left."""
        self.buffer, self.at = self.buffer[self.at :], 0
        if len(self.buffer) > reading.LINE_LIMIT:
            raise self.failed(f"the value that starts here is longer than {reading.LINE_LIMIT >> 20} MiB")
        parts, size = [self.buffer], 0
        while size <= len(self.buffer) and (piece := next(self.pieces, None)) is not None:
            parts.append(piece)
            size += len(piece)
        self.buffer = "".join(parts)
        return size > 0

    def failed(self, why: str) -> UserError:
        return UserError(f"{self.name}, line {self.line}: {why}.")


class _Twice(ValueError):
    """A key that appears twice in one object."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key

    def __str__(self) -> str:
        return f"the key {self.key[:80]!r} is duplicated in an object"


def _object(pairs: list[tuple[str, Any]]) -> dict:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        raise _Twice(next(key for key, _ in pairs if key in seen or seen.add(key)))
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def loads(text: str | bytes) -> Any:
    """json.loads, but a key that appears twice is a ValueError, and a byte order mark is none."""
    return _DECODER.decode((text if isinstance(text, str) else text.decode("utf-8")).strip(WHITE))


def _unfinished(error: Exception, text: str) -> bool:
    """Whether more text might make it valid."""
    return isinstance(error, json.JSONDecodeError) and (
        error.msg.startswith("Unterminated") or error.pos >= len(text.rstrip(WHITE)) - _LITERAL
    )


def _refusal(error: Exception, where: str, at: str = "", what: str = "") -> UserError:
    if isinstance(error, json.JSONDecodeError):
        return UserError(f"{where}: not valid JSON{at} ({error.msg}){what}.")
    if isinstance(error, _Twice):
        return UserError(f"{where}: {error}: keep one.")
    return UserError(f"{where}: this JSON nests too deeply or holds too large a number.")


def _row(value: Any, text: str, where: str) -> dict:
    """The object, or the chat of a list of messages. text: the JSON that it came from."""
    if isinstance(value, list) and _is_chat(value):
        value = {"messages": value}
    if not isinstance(value, dict):
        raise UserError(f"{where}: each line must hold one JSON object, not {kind_of(value)}.")
    if "\\ud" in text or "\\uD" in text:  # an escaped surrogate without its other half is no character
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except (UnicodeEncodeError, RecursionError):
            raise UserError(f"{where}: an escape like \\ud83d lacks its other half.") from None
    if any(key.startswith("\ufeff") for key in value):  # a table's first column, from a file with a byte order mark
        value = {key.lstrip("\ufeff"): item for key, item in value.items()}
    return value


def is_message(value: Any) -> bool:
    return isinstance(value, dict) and (
        {"role", "content"} <= value.keys()
        or {"from", "value"} <= value.keys()
        or {"role", "tool_calls"} <= value.keys()
    )


def _is_chat(value: list) -> bool:
    return bool(value) and all(map(is_message, value))


def dataset_rows(path: Path) -> Iterator[tuple[int, dict]]:
    """The rows of a folder that the datasets library saved, without the nulls that Arrow fills in."""
    if not any((path / name).is_file() for name in ("dataset_info.json", "dataset_dict.json")):
        raise UserError(f"{path} is a folder, and not one that the datasets library saved: name the data file itself.")
    try:
        import datasets
    except ImportError:
        raise UserError(
            f"{path} is a folder; to read one saved by the datasets library, pip install datasets."
        ) from None
    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:
        raise UserError(f"{path} cannot be read as a datasets folder: {str(error).splitlines()[0]}") from None
    if isinstance(loaded, dict):
        if "train" not in loaded:
            raise UserError(f"{path} has the splits {', '.join(loaded)} but no train: give the folder of one of them.")
        loaded = loaded["train"]
    for number, row in enumerate(loaded, 1):
        yield number, without_nulls(dict(row))


def without_nulls(value: Any) -> Any:
    """The same without keys whose value is null, at any depth: in Arrow, all objects of a column have all keys."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def kind_of(value: Any) -> str:
    """What a value is, in words for a message."""
    return {
        type(None): "nothing",
        str: "text",
        list: "a list",
        dict: "an object",
        bool: "true or false",
        int: "a number",
        float: "a number",
    }.get(type(value), type(value).__name__)
