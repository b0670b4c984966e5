"""Locks on files. A process has them until it ends, however it ends: the system sees to that."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path


@contextlib.contextmanager
def locked(path: Path, busy: Callable[[], None]) -> Iterator[None]:
    """Hold the file `path`, made if it is missing, for this process. busy(): called if another one holds it; this one
    then waits, unless busy() raises.

    Nothing is held without fcntl (Windows), or on a file system without locks. Raises OSError as os.open() does.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        for last in (False, False, True):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if last:
                    busy()
                    fcntl.flock(handle, fcntl.LOCK_EX)
                else:
                    time.sleep(0.05)  # somebody may just be looking: is_locked
            except OSError:
                break
        yield
    finally:
        os.close(handle)


def is_locked(path: Path) -> bool:
    """Whether another process holds `path` with locked(). False where this cannot be known."""
    try:
        import fcntl

        handle = os.open(path, os.O_RDONLY)
    except (ImportError, OSError):
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(handle)


def lock(handle: int) -> None:
    """Lock an open file for as long as it is open, where there are locks."""
    with contextlib.suppress(ImportError, OSError):
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
