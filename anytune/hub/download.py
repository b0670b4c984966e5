"""One file over HTTP: resumed where it broke off, its size checked, and its hash if the server names it."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from anytune.errors import UserError
from anytune.files import check_room, sync_folder
from anytune.locks import locked

TRIES = 5
TIMEOUT = 30  # seconds without a byte
PIECE = 1 << 18
# What Hugging Face answers before it redirects to the file's store: its SHA-256.
HASH_HEADER = "X-Linked-Etag"
HINTS = {
    401: "it needs permission: set HF_TOKEN",
    403: "it needs permission: accept its terms and set HF_TOKEN",
    404: "there is no such file: check the spelling",
    410: "the file is gone",
}


Tell = Callable[[int, int | None], None]  # (bytes done, of how many)


class Progress:
    """A line on stderr: rewritten in place on a terminal, else one line each tenth. tell: is called instead."""

    def __init__(self, what: str, total: int | None, done: int = 0, tell: Tell | None = None) -> None:
        self.what, self.total, self.done, self.tell = what, total, done, tell
        self.first, self.start, self.shown = done, time.monotonic(), -1.0

    def add(self, size: int) -> None:
        self.done += size
        now = time.monotonic()
        if self.tell is not None:
            self.tell(self.done, self.total)
            return
        if sys.stderr.isatty():
            if now - self.shown > 0.2:
                self.shown = now
                print(f"\r{self.line(now)}\x1b[K", end="", file=sys.stderr, flush=True)
        elif self.total and self.done * 10 // self.total > self.shown:
            self.shown = self.done * 10 // self.total
            print(self.line(now), file=sys.stderr)

    def line(self, now: float) -> str:
        rate = (self.done - self.first) / max(now - self.start, 1e-3) / 2**20
        whole = f" of {self.total / 2**20:.1f}" if self.total else ""
        return f"{self.what}: {self.done / 2**20:.1f}{whole} MiB, {rate:.1f} MiB/s"

    def end(self) -> None:
        if sys.stderr.isatty() and self.tell is None:
            print(f"\r{self.line(time.monotonic())}\x1b[K", file=sys.stderr)


def check_download(folder: Path, size: int) -> None:
    """Raise UserError unless the disk of `folder` has room for `size` bytes."""
    check_room(folder, size, "the download", "free some space or set ANYTUNE_HOME to another folder")


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Be the only process that brings `path`; waits for another one that is at it."""
    path.parent.mkdir(parents=True, exist_ok=True)

    def busy() -> None:
        print(f"another process is fetching {path.name}: waiting for it", file=sys.stderr)

    with locked(path.with_name(f".{path.name}.lock"), busy):
        yield


def fetch(url: str, folder: Path, token: str | None = None, tell: Tell | None = None) -> Path:
    """Download `url` into `folder` unless it is there, and return its path.

    token: sent to the host of `url` alone, not to where it redirects. Raises UserError; OSError of the disk.
    """
    url = urllib.parse.quote(url.strip(), safe="%!#$&'()*+,/:;=?@[]~")  # addresses are pasted with blanks in them
    parsed = urllib.parse.urlsplit(url)
    name = re.sub(r"[^\w.+-]", "_", Path(urllib.parse.unquote(parsed.path)).name)
    if not parsed.hostname or not name.strip("._"):
        raise UserError(f"{url!r} does not name a file.")
    key = hashlib.sha256(url.encode()).hexdigest()[:12]  # two URLs may end in the same name
    path = folder / key / name
    if not path.is_file():
        with alone(path):
            if not path.is_file():  # it may have come meanwhile
                _bring(url, path, token, tell)
    return path


def _bring(url: str, path: Path, token: str | None, tell: Tell | None) -> None:
    name, part = path.name, path.with_name(path.name + ".part")
    for attempt in range(TRIES):
        try:
            expected = _receive(url, part, token, name, tell)
            break
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code not in (408, 416, 429):
                raise UserError(
                    f"{url}: the server answers {error.code}; {HINTS.get(error.code, error.reason)}."
                ) from None
            cause = f"the server answers {error.code}"
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
            cause = str(getattr(error, "reason", None) or error or type(error).__name__)
        if attempt < TRIES - 1:
            time.sleep(min(2**attempt, 10) * RETRY_SECONDS)
    else:
        raise UserError(
            f"{url} cannot be downloaded ({cause}); check the network and try again: a partial download is continued."
        )
    try:
        _check(url, part, expected)
    finally:
        if part.exists():
            part.replace(path)
        part.with_suffix(".json").unlink(missing_ok=True)
    sync_folder(path.parent)


RETRY_SECONDS = 1.0


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http(s), and keeps the hash that the first answer names."""

    def __init__(self) -> None:
        self.sha256: str | None = None

    def redirect_request(self, request, file, code, message, headers, target):
        self.note(headers)
        return super().redirect_request(request, file, code, message, headers, target)

    def note(self, headers) -> None:
        value = headers.get(HASH_HEADER, "").strip('"')
        if re.fullmatch(r"[0-9a-f]{64}", value):
            self.sha256 = value


def _receive(url: str, part: Path, token: str | None, name: str, tell: Tell | None) -> str | None:
    """Append what is missing to `part`, and return the SHA-256 that it should have, if the server says."""
    notes = part.with_suffix(".json")
    have, tag = _resumable(part, notes)
    request = urllib.request.Request(url, headers={"User-Agent": "anytune", "Accept-Encoding": "identity"})
    if token:
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    if have:
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", tag)
    redirects = _Redirects()
    try:
        response = urllib.request.build_opener(redirects).open(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416:
            part.unlink(missing_ok=True)  # longer than the file: start over
        raise
    with response:
        redirects.note(response.headers)
        place = response.headers.get("Content-Range", "")
        if response.status != 206 or not place.startswith(f"bytes {have}-"):
            have = 0
        length = response.headers.get("Content-Length", "")
        total = have + int(length) if length.isascii() and length.isdigit() else None
        if total is not None:
            check_download(part.parent, total - have)
        tag = response.headers.get("ETag", "")
        notes.write_text(json.dumps({"etag": tag if not tag.startswith("W/") else ""}))
        progress = Progress(name, total, have, tell)
        with part.open("ab" if have else "wb") as file:
            while piece := response.read(PIECE):
                if not progress.done and not b"GGUF".startswith(piece[:4]):  # a page of HTML, other weights
                    part.unlink(missing_ok=True)
                    raise UserError(
                        f"{url} is not a usable model, and was not kept: it does not start with the letters GGUF, "
                        f"but with {piece[:16]!r}."
                    )
                if total is not None and progress.done + len(piece) > total:
                    break
                file.write(piece)
                progress.add(len(piece))
        progress.end()
        if total is not None and progress.done != total:
            raise http.client.IncompleteRead(b"", total - progress.done)
    return redirects.sha256


def _resumable(part: Path, notes: Path) -> tuple[int, str]:
    """(bytes that have arrived, the strong ETag of what they are of), or (0, "") if that is not known."""
    try:
        tag = json.loads(notes.read_text())["etag"]
        size = part.stat().st_size
    except (OSError, ValueError, KeyError, TypeError):
        return 0, ""
    return (size, tag) if isinstance(tag, str) and tag else (0, "")


def _check(url: str, part: Path, expected: str | None) -> None:
    """The hash if it is known, and that it is a sound GGUF file. A bad one is thrown away; one part of several is kept,
    to be joined with the others."""
    from anytune.gguf import GGUF
    from anytune.gguf.header import SplitModel

    if expected is not None:
        with part.open("rb", buffering=0) as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != expected:
            part.unlink()
            raise UserError(f"{url} has the SHA-256 {found} instead of {expected}; it was not kept: try again.")
    try:
        GGUF.open(part).close()
    except SplitModel as error:
        raise UserError(
            f"{url} is kept as {part.with_suffix('')}, but is one of {error.parts} parts of a model: fetch the "
            "others, and join them with `llama-gguf-split --merge FIRST-PART OUTPUT.gguf`."
        ) from None
    except UserError as error:
        part.unlink()
        raise UserError(f"{url} is not a usable model, and was not kept: {error}") from None
