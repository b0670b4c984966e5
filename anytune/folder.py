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
    check_room(path.parent, size, path.name)
    made = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    try:
        yield made
        os.chmod(made, 0o777 & ~umask())
        if path.is_dir():
            shutil.rmtree(path)  # an empty one, as mkdir leaves it, or what was there before
        os.replace(made, path)
        sync_folder(path.parent)
    except OSError as error:
        shutil.rmtree(made, ignore_errors=True)
        raise cannot_write(path, error) from None
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
