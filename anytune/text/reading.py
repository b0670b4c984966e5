"""Files, pipes and standard input ("-") as text, each opened and read once, from its beginning to its end.

gzip is unpacked as it comes. A byte order mark at the beginning is dropped. Lines end with "\\n" alone: U+2028 and the
like are text, and "\\r" stays where it is.
"""

from __future__ import annotations

import codecs
import contextlib
import gzip
import io
import os
import stat
import sys
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from anytune.errors import UserError
from anytune.text.given import Rows

PIECE = 1 << 16  # bytes read at once
LINE_LIMIT = 32 << 20  # characters of one line, or of one JSON value
TEXT_LIMIT = 1 << 30  # characters of a text that is read whole
LOOK = 1 << 12  # characters that tell of what kind a file is
BLANK_LIMIT = 1 << 20  # characters of blank lines before them
WHITE = " \t\r\n\f\v\x1c\x1d\x1e\x1f\x85\xa0\u2028\u2029\ufeff"
_FOREIGN = {
    b"\xff\xfe": "UTF-16 text: convert it to UTF-8",
    b"\xfe\xff": "UTF-16 text: convert it to UTF-8",
    b"%PDF-": "a PDF: convert it to text",
    b"SQLite format 3\0": "a database: write its rows as JSONL",
    b"PK\x03\x04": "a zip archive: unpack it",
    b"\xfd7zX": "compressed with xz: unpack it, or use gzip",
    b"\x28\xb5\x2f\xfd": "compressed with zstd: unpack it, or use gzip",
    b"BZh": "compressed with bzip2: unpack it, or use gzip",
    b"PAR1": "a Parquet file: convert it to JSONL, one object per line",
}

FilePath = str | os.PathLike
_taken: list = []  # standard input, once it was read


class _Again(io.RawIOBase):
    """`rest` with `head` before it, which was read from it already."""

    def __init__(self, head: bytes, rest: BinaryIO) -> None:
        self.head, self.rest = head, rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        if not self.head:
            got = self.rest.read1(len(buffer)) if hasattr(self.rest, "read1") else self.rest.read(len(buffer))
        else:
            got, self.head = self.head[: len(buffer)], self.head[len(buffer) :]
        buffer[: len(got)] = got
        return len(got)


@contextlib.contextmanager
def _opened(path: FilePath) -> Iterator[BinaryIO]:
    with contextlib.ExitStack() as held:
        if os.fspath(path) == "-":
            if sys.stdin is not None and _taken == [sys.stdin]:
                raise UserError("Standard input (-) can be read only once: write it to a file first.")
            _taken[:] = [sys.stdin]
            source = getattr(sys.stdin, "buffer", None) or io.BytesIO(sys.stdin.read().encode() if sys.stdin else b"")
        else:
            source = held.enter_context(open(path, "rb"))
        head = source.read(max(map(len, _FOREIGN)))
        for mark, what in _FOREIGN.items():
            if head.startswith(mark):
                raise UserError(f"{path} is {what}.")
        whole = io.BufferedReader(_Again(head, source), PIECE)
        yield gzip.GzipFile(fileobj=whole) if head.startswith(b"\x1f\x8b") else whole


def pieces(path: FilePath) -> Iterator[str]:
    """Stretches of the text, at most PIECE bytes each; a line's end is nowhere but at the end of one.

    Raises UserError naming the file for what cannot be read, the line and byte too for what is not UTF-8.
    """
    decoder, number, before, first = codecs.getincrementaldecoder("utf-8")(), 1, 0, True
    try:
        with _opened(path) as file:
            while True:
                raw, held = file.readline(PIECE), len(decoder.getstate()[0])
                try:
                    text = decoder.decode(raw, final=not raw)
                except UnicodeDecodeError as error:
                    raise UserError(
                        f"{path}, line {number}: byte {before - held + error.start + 1} of the line is not UTF-8."
                    ) from None
                if text:
                    if piece := text.removeprefix("\ufeff") if first else text:
                        yield piece
                    first = False
                if not raw:
                    return
                number, before = (number + 1, 0) if raw.endswith(b"\n") else (number, before + len(raw))
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from None


def lines(stretches: Iterable[str], name: FilePath) -> Iterator[tuple[int, str]]:
    """(number from 1, line with its end) of what `pieces` gives. name: of the file, for messages."""
    number, parts, size = 1, [], 0
    for piece in stretches:
        parts.append(piece)
        size += len(piece)
        if size > LINE_LIMIT:
            raise UserError(f"{name}, line {number}: the line is longer than {LINE_LIMIT >> 20} MiB.")
        if piece.endswith("\n"):
            yield number, "".join(parts)
            number, parts, size = number + 1, [], 0
    if parts:
        yield number, "".join(parts)


class Stream:
    """Pieces of text, of which the first can be looked at before they are taken."""

    def __init__(self, stretches: Iterable[str]) -> None:
        self._pieces, self._seen = iter(stretches), deque()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        return self._seen.popleft() if self._seen else next(self._pieces)

    def beginning(self) -> str:
        """The first characters that are not blank, LOOK of them if there are so many. They are still to be taken."""
        text = "".join(self._seen).lstrip(WHITE)
        blank = 0
        while len(text) < LOOK and blank < BLANK_LIMIT and (piece := next(self._pieces, None)) is not None:
            self._seen.append(piece)
            blank += 0 if text else len(piece)
            text = (text + piece).lstrip(WHITE)
        return text


def read_text(path: FilePath) -> str:
    """All of the text. Raises UserError as `pieces` does, or if it is longer than TEXT_LIMIT."""
    parts, size = [], 0
    for piece in pieces(path):
        parts.append(piece)
        size += len(piece)
        if size > TEXT_LIMIT:
            raise UserError(f"{path} is longer than {TEXT_LIMIT >> 20} MiB, and would be held in memory: split it.")
    return "".join(parts)


def reads_once(path: FilePath) -> bool:
    """Whether it is a pipe, a terminal or the like, which a second reader finds empty."""
    if isinstance(path, Rows):
        return False
    try:
        mode = (os.fstat(sys.stdin.fileno()) if os.fspath(path) == "-" else os.stat(path)).st_mode
    except (OSError, ValueError, AttributeError):
        return os.fspath(path) == "-"
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)) or os.fspath(path) == "-"


def check_once(paths: Iterable[FilePath]) -> None:
    """Raise UserError if a pipe is to be read twice."""
    seen: dict[tuple, FilePath] = {}
    for path in filter(reads_once, paths):
        if (key := identity(path)) in seen:
            raise UserError(f"{path} is given twice, but a pipe can be read only once: write it to a file first.")
        seen[key] = path


def identity(path: FilePath) -> tuple:
    """What is equal for two paths of one file, "-" and /dev/stdin among them."""
    if isinstance(path, Rows):
        return (id(path.source),)
    try:
        found = os.fstat(sys.stdin.fileno()) if os.fspath(path) == "-" else os.stat(path)
        return found.st_dev, found.st_ino
    except (OSError, ValueError, AttributeError):
        return (os.path.realpath(Path(path)),)
