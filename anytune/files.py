"""Files that are either whole or absent: written beside their place, synced, renamed."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

CHUNK = 256 << 10   # bytes at a time: copying must fit beside a training that fills its budget


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


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike, mode: str = "wb") -> Iterator[IO]:
    """Open a temporary file that becomes `path` when the block ends, and vanishes if it raises.

    mode: "wb" or "w" (UTF-8). Raises OSError as open() and os.replace() do.
    """
    path = Path(path)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~umask())
        os.replace(name, path)
        sync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


@contextlib.contextmanager
def locked(path: Path, busy: Callable[[], None]) -> Iterator[None]:
    """Hold the file `path`, made if it is missing, for this process; the system lets go when the process ends, however
    it ends. busy(): called if another one holds it; this one then waits, unless busy() raises.

    Nothing is held without fcntl (Windows), or on a file system without locks. Raises OSError as os.open() does.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            busy()
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:
            pass
        yield
    finally:
        os.close(handle)


def copy(source: Path, target: Path) -> None:
    """`target` becomes a copy of `source`, whole or not at all. Raises OSError."""
    with open(source, "rb") as file, atomic_write(target) as out:
        shutil.copyfileobj(file, out, CHUNK)


def umask() -> int:
    """This process's umask: mkstemp ignores it, and a shared model folder should not."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
