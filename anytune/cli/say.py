"""What commands print: a result as JSON on stdout, remarks on stderr."""

from __future__ import annotations

import json
import math
from typing import Any

import click


def print_json(value: Any) -> None:
    """Print one JSON document on stdout; NumPy numbers and paths become plain ones, NaN becomes null."""
    click.echo(json.dumps(_finite(value), indent=2, ensure_ascii=False, default=_plain, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    return str(value)


def note(text: str) -> None:
    """A remark beside the result: on stderr, so that stdout stays the result."""
    click.echo(f"note: {text}", err=True)
