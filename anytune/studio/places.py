"""Where exports may go: the studio's own folder, LM Studio's, removable drives, and what --export-to names.

A page chooses one by its name. It cannot name a path.
"""

from __future__ import annotations

import getpass
import os
import shutil
from pathlib import Path
from typing import Any

from anytune.hub import lmstudio
from anytune.studio.home import Home, Missing


def places(home: Home, further: tuple[Path, ...] = ()) -> dict[str, Path]:
    """name -> folder, of those that are there and can be written."""
    found = {"exports": home.exports}
    for folder in (*further, *_drives()):
        if folder.is_dir() and os.access(folder, os.W_OK):
            name = folder.name or str(folder)
            found[name if name not in found else f"{name} ({len(found)})"] = folder
    return found


def _drives() -> list[Path]:
    """Mounted drives of this user."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        return []
    found: list[Path] = []
    for parent in (Path("/media") / user, Path("/run/media") / user, Path("/Volumes")):
        try:
            found += [path for path in sorted(parent.iterdir()) if os.path.ismount(path) and not path.is_symlink()]
        except OSError:
            continue
    return found


def listed(home: Home, further: tuple[Path, ...] = ()) -> list[dict[str, Any]]:
    return [{"name": name, "free": shutil.disk_usage(folder).free} for name, folder in places(home, further).items()]


def folder_of(home: Home, name: str, further: tuple[Path, ...] = ()) -> Path:
    """The folder of a place. Raises Missing."""
    found = places(home, further).get(name)
    if found is None:
        raise Missing(f"There is no export destination {name[:100]}: is the drive still connected?")
    return found


def lm_studio() -> Path | None:
    """LM Studio's folder of models, if it is installed here."""
    return next((folder for folder in lmstudio.folders() if folder.is_dir()), None)
