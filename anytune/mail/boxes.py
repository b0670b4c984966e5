"""Raw messages from mbox files (Gmail Takeout's too), Maildir folders and .eml files, one at a time.

Of a message the first KEEP bytes are handed on: attachments are behind the text, and no message fills the memory.
"""

from __future__ import annotations

import gzip
import os
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from anytune.errors import UserError

KEEP = 4 << 20  # bytes of a message
LINE = 1 << 16  # bytes of a line read at once
_START = re.compile(rb"From \S+.*\d{1,2}:\d\d")  # "From someone@x Mon Jan 1 00:00:00 2024"; a sentence has no clock
_QUOTED_START = re.compile(rb">+From ")


def find(paths: Sequence[str | os.PathLike]) -> list[Path]:
    """The mbox files and single messages that are meant: files as they are, folders with all below them, in order.

    Raises UserError for a path that does not exist or holds no mail.
    """
    found: dict[Path, None] = {}
    for given in paths:
        path = Path(given).expanduser()
        if not path.exists():
            raise UserError(f"There is no mailbox {path}: check the path.")
        if path.suffix.lower() in (".zip", ".tgz", ".tar", ".pst", ".olm"):
            raise UserError(f"{path} cannot be read: unpack it, or export the e-mails as mbox or .eml.")
        if not (path.is_file() or path.is_dir()):
            raise UserError(f"{path} is a pipe or a device, but e-mails are read twice: write it to a file first.")
        below = (Path(folder) / name for folder, _, names in os.walk(path) for name in names)
        wanted = [path] if path.is_file() else sorted(filter(_is_mail, below))
        if not wanted:
            raise UserError(f"{path} contains no e-mails: give mbox files, a Maildir or .eml files.")
        found |= dict.fromkeys(wanted)
    return list(found)


def _is_mail(path: Path) -> bool:
    name = path.name.lower().removesuffix(".gz")
    return name.endswith((".eml", ".mbox", ".mbx")) or name == "mbox" or path.parent.name in ("cur", "new")


def messages(files: Sequence[Path], progress: Callable[[int, int], None] | None = None) -> Iterator[bytes]:
    """Every message, at most KEEP bytes of each. progress: (bytes read, of how many). Raises UserError."""
    sizes = [path.stat().st_size for path in files]
    total, before = sum(sizes), 0
    for path, size in zip(files, sizes, strict=True):
        try:
            with open(path, "rb") as file:
                packed = file.read(2) == b"\x1f\x8b"
                file.seek(0)
                source: BinaryIO = gzip.open(file) if packed else file
                first = source.readline(LINE)
                if _START.match(first):
                    for raw in _mbox(source):
                        yield raw
                        if progress is not None:
                            progress(before + min(file.tell(), size), total)
                else:
                    yield first + source.read(KEEP)
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
        before += size
        if progress is not None:
            progress(before, total)


def _mbox(source: BinaryIO) -> Iterator[bytes]:
    """The messages behind a first "From " line, with ">From " unquoted."""
    parts: list[bytes] = []
    held, blank, whole = 0, False, True  # whole: the next line begins a line of the file
    while line := source.readline(LINE):
        if whole and blank and _START.match(line):
            yield b"".join(parts)
            parts, held, blank = [], 0, False
            continue
        if whole and _QUOTED_START.match(line):
            line = line[1:]
        if held < KEEP:
            parts.append(line)
            held += len(line)
        blank, whole = whole and not line.strip(), line.endswith(b"\n")
    yield b"".join(parts)
