"""Files that are either whole or absent: written beside their place, synced, renamed; and never over what was read."""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from anytune.errors import UserError
from anytune.locks import is_locked, lock
from anytune.units import bytes_text

FilePath = str | os.PathLike

SPARE = 64 << 20  # bytes of the disk that are left alone
FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
STALE = 600.0  # seconds after which a temporary file that nobody writes is a leftover
CHUNK = 256 << 10  # bytes at a time: copying must fit beside a training that fills its budget


def sync_folder(path: Path) -> None:
    """Make a rename inside `path` durable (a no-op where folders cannot be opened, as on Windows)."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass  # some file systems refuse to sync a folder; the rename itself is still atomic
    finally:
        os.close(handle)


def is_special(path: Path) -> bool:
    """Whether something is there that is neither a file nor a folder, such as /dev/null: it must not be replaced."""
    return path.exists() and not path.is_file() and not path.is_dir()


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike, mode: str = "wb") -> Iterator[IO]:
    """Open a temporary file that becomes `path` when the block ends, and vanishes if it raises. A device or a pipe is
    written into.

    mode: "wb" or "w" (UTF-8). Raises OSError as open() and os.replace() do, with `path` where the disk is full.
    """
    path = Path(path)
    if is_special(path):
        with open(path, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
        return
    _sweep(path)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        lock(handle)
        with os.fdopen(handle, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~umask())
        os.replace(name, path)
        sync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(name)
        if isinstance(error, OSError) and error.errno in FULL:
            error.filename = os.fspath(path)  # which a write does not tell
        raise


def _sweep(path: Path) -> None:
    """Remove temporary files of `path` that killed processes left: old, and locked by nobody."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with contextlib.suppress(OSError):
            if left.is_file() and time.time() - left.stat().st_mtime > STALE and not is_locked(left):
                left.unlink()


def spare_inputs(outputs: Iterable[FilePath | None], inputs: Iterable[tuple[str, FilePath | None]]) -> None:
    """Raise UserError if writing `outputs` would replace one of `inputs`; to be asked before any work is done.

    inputs: (what it is, in words; its path). A folder means all files below it. Paths are compared as files, not
    as words: other spellings, symbolic and hard links, and names that differ in case where the disk does not tell
    cases apart are the same file. "-" is the file that standard input comes from, if any; None is passed over.
    """
    read = [
        (what, Path("/dev/stdin" if os.fspath(path) == "-" else path).expanduser())
        for what, path in inputs
        if path is not None
    ]
    for output in (Path(path) for path in outputs if path is not None):
        for what, path in read:
            if _same(output, path) or _within(output, path):
                spelled = "" if os.fspath(path) == os.fspath(output) else f" ({path})"
                raise UserError(
                    f"{output} is {what} itself{spelled}, and would be overwritten: give what is written another name."
                )


def check_output(
    path: FilePath | None,
    force: bool = False,
    inputs: Iterable[tuple[str, FilePath | None]] = (),
    *,
    folder: bool = False,
) -> None:
    """The one rule for all that commands write, asked before any work is done: raise UserError unless `path`, a file or
    a `folder`, can be made. None is passed over.

    What exists is refused, unless `force` allows it to be replaced; an empty folder, a device and a pipe count as free.
    Missing folders above it are made. inputs: what is read, which is never replaced (see spare_inputs).
    """
    if path is None:
        return
    path = Path(path)
    spare_inputs([path], inputs)
    if path.is_dir() and not folder:
        raise UserError(f"{path} is a folder: name a file.")
    if folder and path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file: name a folder.")
    blocked = next((above for above in path.parents if above.exists() and not above.is_dir()), None)
    if blocked is not None:
        raise UserError(f"{path} cannot be written, because {blocked} is a file: choose another place.")
    held = [entry.name for entry in path.iterdir()] if path.is_dir() else []
    if not force and (held or path.is_file()):
        raise UserError(f"{path} already exists: choose another name, or use --force to replace it.")
    foreign = next((name for name in held if not ((path / name).is_file() and name.endswith(MADE))), None)
    if foreign is not None:
        raise UserError(
            f"{path} holds {foreign}, which exports do not write, so it is not replaced: name another folder."
        )
    try:
        path.absolute().parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.is_file():
            try_writing(path.absolute().parent)
    except OSError as error:
        raise cannot_write(path.parent, error) from None


def check_files(
    folder: FilePath, names: Iterable[str], force: bool = False, inputs: Iterable[tuple[str, FilePath | None]] = ()
) -> None:
    """check_output() of files in a folder, which may hold others as well and is not made yet. inputs is read once for
    each: a list."""
    places = [Path(folder) / name for name in names]
    spare_inputs(places, inputs)
    if not Path(folder).is_dir():
        return check_output(folder, folder=True)
    for place in places:
        check_output(place, force)


MADE = (  # ends of names that exported folders hold
    *(".json", ".safetensors", ".gguf", ".jinja", ".txt", ".md", ".model", "Modelfile"),
    *(".v", ".hex", ".wgsl"),
)


def _same(a: Path, b: Path) -> bool:
    try:
        return os.path.samefile(a, b)
    except (OSError, ValueError):  # one of them is not there (yet)
        return os.path.realpath(a) == os.path.realpath(b)


def _within(path: Path, folder: Path) -> bool:
    """Whether `path` is a file that is there, and one of those below `folder`, by place or as a hard link."""
    if not folder.is_dir() or not path.is_file():
        return False
    if Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        return True
    return path.stat().st_nlink > 1 and any(
        _same(path, Path(place, name)) for place, _, names in os.walk(folder) for name in names
    )


def cannot_write(path: FilePath, error: OSError) -> UserError:
    """The error to raise when writing to `path` failed with `error`: "free some space" only where the disk is full."""
    freed = "free some space or " if error.errno in FULL else ""
    return UserError(f"{path} cannot be written: {error.strerror or error}; {freed}choose another place.")


def try_writing(folder: FilePath) -> None:
    """Raise OSError unless files with contents can be made in `folder`. Nothing stays."""
    with tempfile.TemporaryFile(prefix=".anytune-", dir=folder) as file:
        file.write(bytes(4096))


def check_room(
    folder: FilePath, size: int, what: str, instead: str = "free some space or choose another place"
) -> None:
    """Raise UserError unless files can be made in `folder`, and `size` bytes (and SPARE more) are free there. what: the
    name of what needs them; instead: what to do."""
    try:
        try_writing(folder)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise cannot_write(folder, error) from None
    if free < size + SPARE:
        raise UserError(
            f"{folder} has {bytes_text(free)} free, and {what} needs {bytes_text(size)} with {bytes_text(SPARE)} to "
            f"spare: {instead}."
        )


def read_json(path: Path, limit: int = 256 << 20, why: str = "") -> dict[str, Any]:
    """The object in a JSON file of at most `limit` bytes. UserError where there is none; why: what needs the file, for
    that error."""
    try:
        if path.stat().st_size > limit:
            raise UserError(f"{path} is larger than {limit >> 20} MiB, which is too large for such a file.")
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}{why and f'; {why}'}.") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON: {error}.") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} is not a JSON object.")
    return found


def copy(source: Path, target: Path) -> None:
    """`target` becomes a copy of `source`, whole or not at all. Raises OSError."""
    with open(source, "rb") as file, atomic_write(target) as out:
        shutil.copyfileobj(file, out, CHUNK)


def umask() -> int:
    """This process's umask: mkstemp ignores it, and a shared model folder should not."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
