"""How to install what an extra of this package brings, from wherever this package runs."""

from __future__ import annotations

import shlex
from pathlib import Path


def install(extra: str) -> str:
    """A command in `backticks`: from a clone by its path, else by the package's name."""
    clone = Path(__file__).resolve().parents[1]
    if (clone / "pyproject.toml").is_file():
        return f"`pip install -e {shlex.quote(f'{clone}[{extra}]')}`"
    return f"`pip install 'anytune[{extra}]'`"
