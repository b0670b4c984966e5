"""Folders that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from anytune.files import cannot_write, check_output, check_room, sync_folder, umask


@contextlib.contextmanager
def new_folder(path: str | os.PathLike, size: int = 0, force: bool = False) -> Iterator[Path]:
    """A folder to fill, which becomes `path` when the block ends, and vanishes if it raises.

    size: bytes that will be written. force: it may be there already (see files.check_output). Raises UserError if it is
    and must not be, or there is too little room.
    """
    path = Path(path)
    check_output(path, force, folder=True)
    path = Path(os.path.realpath(path))  # behind a link, the folder that it leads to
    check_room(path.parent, size, path.name)
    made = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    try:
        yield made
        os.chmod(made, 0o777 & ~umask())
        with _aside(path, made.with_suffix(".old")):
            os.replace(made, path)
        sync_folder(path.parent)
    except OSError as error:
        shutil.rmtree(made, ignore_errors=True)
        raise cannot_write(path, error) from None
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise


@contextlib.contextmanager
def _aside(path: Path, other: Path) -> Iterator[None]:
    """Rename a folder `path` to `other` during the block; then remove it, or rename it back if the block raises."""
    held = path.is_dir()
    if held:
        os.replace(path, other)
    try:
        yield
    except BaseException:
        if held:
            os.replace(other, path)
        raise
    shutil.rmtree(other, ignore_errors=True)
