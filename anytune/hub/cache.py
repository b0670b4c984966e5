"""Where anytune keeps what it fetches."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """The cache folder (it may not exist yet): $ANYTUNE_HOME, or anytune in the user's cache folder."""
    if own := os.environ.get("ANYTUNE_HOME"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "anytune"
