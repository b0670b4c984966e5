"""Chat templates that come with anytune, by the names that llama.cpp knows them by."""

from __future__ import annotations

import os
from pathlib import Path

FOLDER = Path(__file__).parent / "templates"
NAMES = ("chatml", "gemma", "llama3", "phi3", "zephyr")


def named_template(name: str | os.PathLike) -> str | None:
    """The text of the template of that name; None where `name` is none of NAMES, or is a file that is there."""
    if str(name) not in NAMES or Path(name).exists():
        return None
    return (FOLDER / f"{name}.jinja").read_text(encoding="utf-8").removesuffix("\n")
