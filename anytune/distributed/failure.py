"""How a rank that cannot go on ends, and what it reports to the parent of --gpus, through files in a folder."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import NoReturn

from anytune.errors import UserError

REPORT = "ANYTUNE_REPORT_FOLDER"


class WorkerLost(Exception):
    """Another process of the process group ended, hung or cannot be reached: this one cannot go on. Exit code 1.

    told: whether the user has been told."""

    told = False


class PeerError(UserError):
    """An error that rank 0 tells the user: whoever catches it on another rank need not say it again."""


def give_up(error: Exception) -> NoReturn:
    """End this process at once: its device may wait forever for one that is gone. Says why, unless another does."""
    report("ended", str(error))
    if not isinstance(error, PeerError) and not getattr(error, "told", False) and not launched():
        with contextlib.suppress(OSError):
            os.write(2, f"anytune: {str(error).rstrip('.')}.\n".encode())
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    os._exit(2 if isinstance(error, UserError) else 1)


def report(name: str, text: str) -> None:
    """Report to the parent process, if there is one (see launch.py)."""
    folder = os.environ.get(REPORT)
    if folder:
        with contextlib.suppress(OSError):
            path = os.path.join(folder, f"{name}-{os.environ.get('RANK', '0')}")
            with open(f"{path}.new", "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(f"{path}.new", path)


def launched() -> bool:
    """Whether such a parent started this process."""
    return REPORT in os.environ
