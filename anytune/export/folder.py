"""Folders that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from anytune.errors import UserError
from anytune.files import cannot_write, check_room, sync_folder, umask


@contextlib.contextmanager
def new_folder(path: str | os.PathLike, size: int = 0) -> Iterator[Path]:
    """A folder to fill, which becomes `path` when the block ends, and vanishes if it raises.

    size: bytes that will be written. Raises UserError if `path` exists and is not empty, or there is too little room.
    """
    path = Path(path)
    check_new(path)
    check_room(path.parent, size, path.name)
    made = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    try:
        yield made
        os.chmod(made, 0o777 & ~umask())
        if path.is_dir():
            path.rmdir()  # an empty one, as mkdir leaves it
        os.replace(made, path)
        sync_folder(path.parent)
    except OSError as error:
        shutil.rmtree(made, ignore_errors=True)
        raise cannot_write(path, error) from None
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise


def check_new(path: Path) -> None:
    """UserError unless a folder can be made at `path`."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} exists already: remove it or choose another name.")
    if not path.parent.is_dir():
        raise UserError(f"{path} cannot be written: there is no folder {path.parent}.")
